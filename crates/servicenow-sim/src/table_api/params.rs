//! The parameters of a call (facts §1.3). Unknown ones are silently ignored (facts §1.2).

/// What values are returned (facts §1.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum DisplayMode {
    /// Stored values.
    #[default]
    Stored,
    /// Display values.
    Shown,
    /// Both.
    Both,
}

/// The parameters of a Table API call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Params {
    /// `sysparm_query`.
    pub(crate) query: Option<String>,
    /// `field=value` pairs, used when there is no `sysparm_query`.
    pub(crate) pairs: Vec<(String, String)>,
    /// `sysparm_fields`.
    pub(crate) fields: Option<Vec<String>>,
    /// `sysparm_limit`.
    pub(crate) limit: usize,
    /// `sysparm_offset`.
    pub(crate) offset: usize,
    /// `sysparm_display_value`.
    pub(crate) display: DisplayMode,
    /// `sysparm_exclude_reference_link`.
    pub(crate) exclude_link: bool,
    /// `sysparm_no_count`.
    pub(crate) no_count: bool,
    /// `sysparm_suppress_pagination_header`.
    pub(crate) suppress_pagination: bool,
    /// `sysparm_input_display_value`.
    pub(crate) input_display: bool,
    /// `sysparm_suppress_auto_sys_field`.
    pub(crate) suppress_auto_sys_field: bool,
}

/// The page size when none is asked for (facts §1.3).
pub(crate) const DEFAULT_LIMIT: usize = 10_000;

impl Params {
    /// Reads the decoded query parameters of a call; a bad number falls back to the default.
    pub(crate) fn parse(pairs: &[(String, String)]) -> Self {
        let mut params = Self { limit: DEFAULT_LIMIT, ..Self::default() };
        for (name, value) in pairs {
            let on = value == "true";
            match name.as_str() {
                "sysparm_query" => params.query = Some(value.clone()),
                "sysparm_fields" => {
                    let list: Vec<String> = value
                        .split(',')
                        .map(str::trim)
                        .filter(|f| !f.is_empty())
                        .map(str::to_owned)
                        .collect();
                    params.fields = (!list.is_empty()).then_some(list);
                }
                "sysparm_limit" => params.limit = value.trim().parse().unwrap_or(DEFAULT_LIMIT),
                "sysparm_offset" => params.offset = value.trim().parse().unwrap_or(0),
                "sysparm_display_value" => {
                    params.display = match value.as_str() {
                        "true" => DisplayMode::Shown,
                        "all" => DisplayMode::Both,
                        _ => DisplayMode::Stored,
                    }
                }
                "sysparm_exclude_reference_link" => params.exclude_link = on,
                "sysparm_no_count" => params.no_count = on,
                "sysparm_suppress_pagination_header" => params.suppress_pagination = on,
                "sysparm_input_display_value" => params.input_display = on,
                "sysparm_suppress_auto_sys_field" => params.suppress_auto_sys_field = on,
                other if !other.starts_with("sysparm_") => params.pairs.push((name.clone(), value.clone())),
                _ => {}
            }
        }
        params
    }
}
