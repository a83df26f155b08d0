//! The `Link` header (facts §1.2).

/// The page links of a list, or `None` when one page is everything.
pub(crate) fn links(
    base: &str,
    path: &str,
    query: &str,
    limit: usize,
    offset: usize,
    total: usize,
    previous: bool,
) -> Option<String> {
    if limit == 0 || total <= limit {
        return None;
    }
    let last = (total - 1) / limit * limit;
    let mut links = vec![(0i64, "first")];
    if previous {
        links.push((offset as i64 - limit as i64, "prev"));
    }
    if offset + limit < total {
        links.push(((offset + limit) as i64, "next"));
    }
    links.push((last as i64, "last"));
    let all: Vec<String> = links
        .into_iter()
        .map(|(offset, rel)| format!("<{}>;rel=\"{rel}\"", page_url(base, path, query, limit, offset)))
        .collect();
    Some(all.join(","))
}

/// The address of a page: the other parameters stay, limit and offset are replaced.
pub(crate) fn page_url(base: &str, path: &str, query: &str, limit: usize, offset: i64) -> String {
    let mut kept: Vec<String> = query
        .split('&')
        .filter(|p| !p.is_empty() && !p.starts_with("sysparm_limit=") && !p.starts_with("sysparm_offset="))
        .map(str::to_owned)
        .collect();
    kept.push(format!("sysparm_limit={limit}"));
    kept.push(format!("sysparm_offset={offset}"));
    format!("{base}{path}?{}", kept.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_page_links_to_offset_minus_one_as_captured() {
        let query = "query=number%3DINC0000040&display_value=True&sysparm_limit=1";
        let link =
            links("https://dev130168.service-now.com", "/api/now/v2/table/incident", query, 1, 0, 67, true);
        let captured: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/captures/incident_list_v2_with_headers.json"))
                .expect("JSON");
        assert_eq!(link.as_deref(), captured["headers"]["Link"].as_str());
    }

    #[test]
    fn there_are_no_links_when_one_page_is_everything() {
        assert_eq!(links("h", "/p", "", 10, 0, 10, true), None);
    }
}
