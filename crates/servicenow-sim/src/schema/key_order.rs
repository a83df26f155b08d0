//! The order of keys in a row: the instance prints a Java hash map.
//!
//! The captured rows (facts §1.4, "hash-like" order) are exactly what a Java 8 `HashMap` filled in alphabetical order
//! iterates to: entries by `(h ^ h >>> 16) & (capacity - 1)`, the capacity doubled whenever it is more than three
//! quarters full. So the order of every class follows from its set of columns alone.

/// The bucket of a key in a hash map of this capacity.
fn bucket(key: &str, capacity: u32) -> u32 {
    let hash = key.encode_utf16().fold(0u32, |h, unit| h.wrapping_mul(31).wrapping_add(u32::from(unit)));
    (hash ^ (hash >> 16)) & (capacity - 1)
}

/// Sorts keys into the order in which the instance prints them.
pub(crate) fn sort_keys<T>(items: &mut [T], key: impl Fn(&T) -> String) {
    let mut capacity = 16u32;
    while items.len() as f64 > f64::from(capacity) * 0.75 {
        capacity *= 2;
    }
    items.sort_by_cached_key(|item| {
        let key = key(item);
        (bucket(&key, capacity), key)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_in_the_captured_row() {
        let capture: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/captures/incident_list_v2_with_headers.json"))
                .expect("JSON");
        let row = capture["body"]["result"][0].as_object().expect("a row");
        let mut keys: Vec<String> = row.keys().cloned().collect();
        sort_keys(&mut keys, Clone::clone);
        // The order of the first and last keys in the captured text.
        assert_eq!(
            keys[..6],
            ["parent", "made_sla", "caused_by", "watch_list", "upon_reject", "sys_updated_on"]
        );
        assert_eq!(keys[88..], ["upon_approval", "correlation_id", "location", "category"]);
    }
}
