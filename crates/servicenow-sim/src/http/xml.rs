//! JSON answers as XML, for callers that accept nothing else (facts §1.1, §5).

use serde_json::Value;

use crate::audit::escape_xml;

/// A JSON answer as the instance's XML: `<response>` around the keys, repeated elements for arrays.
pub(crate) fn from_json(body: &[u8]) -> Vec<u8> {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>");
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => element(&mut out, "response", &value),
        Err(_) => out.push_str("<response/>"),
    }
    out.into_bytes()
}

fn element(out: &mut String, name: &str, value: &Value) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| element(out, name, item)),
        Value::Object(map) => {
            out.push_str(&format!("<{name}>"));
            map.iter().for_each(|(key, value)| element(out, key, value));
            out.push_str(&format!("</{name}>"));
        }
        Value::String(text) if !text.is_empty() => {
            out.push_str(&format!("<{name}>{}</{name}>", escape_xml(text)));
        }
        Value::Number(n) => out.push_str(&format!("<{name}>{n}</{name}>")),
        Value::Bool(on) => out.push_str(&format!("<{name}>{on}</{name}>")),
        Value::String(_) | Value::Null => out.push_str(&format!("<{name}/>")),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_documented_batch_item_has_this_form() {
        let xml = super::from_json(br#"{"result":{"user_name":""}}"#);
        let text = String::from_utf8(xml).expect("UTF-8");
        let documented =
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><response><result><user_name/></result></response>";
        assert_eq!(text, documented);
    }
}
