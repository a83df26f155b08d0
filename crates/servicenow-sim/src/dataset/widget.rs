//! Rows of `u_pg_widget`, which has a column of every dictionary type, with ordinary, extreme and empty values.

use crate::dictionary::Seeder;
use crate::ident;
use crate::schema::Kind;
use crate::store::Db;

/// Gives a value of a type.
type Maker = fn(&str, Kind) -> String;

/// Adds the rows: one ordinary, one extreme, one empty, one with odd text.
pub(crate) fn add(db: &mut Db) {
    let Some(table) = db.schema.find("u_pg_widget") else { return };
    let columns: Vec<(String, String, Kind)> = db
        .schema
        .table(table)
        .own
        .iter()
        .filter(|c| c.element.starts_with("u_t_"))
        .map(|c| (c.element.to_string(), c.internal_type.clone(), c.kind))
        .collect();
    let seeder = Seeder::new(db, "u_pg_widget", "admin", "2025-03-30 01:59:59");
    let rows: [(&str, Maker); 4] =
        [("ordinary", ordinary), ("extreme", extreme), ("empty", |_, _| String::new()), ("odd", odd)];
    for (n, (name, value)) in rows.into_iter().enumerate() {
        let mut fields: Vec<(&str, String)> = vec![
            ("sys_id", ident::sys_id("u_pg_widget", name)),
            ("u_number", format!("WID{:07}", n + 1)),
            ("u_name", format!("Widget {name}")),
            ("u_text_50", "x".repeat(n * 60)),
            ("u_inactive", name.to_owned()),
            ("u_border_state", if name == "ordinary" { "2".to_owned() } else { String::new() }),
        ];
        fields.extend(columns.iter().map(|(element, t, kind)| (element.as_str(), value(t, *kind))));
        let fields: Vec<(&str, &str)> = fields.iter().map(|(e, v)| (*e, v.as_str())).collect();
        seeder.add(db, &fields);
    }
    let parts = Seeder::new(db, "u_pg_widget_part", "admin", "2025-03-30 02:00:00");
    parts.add(
        db,
        &[("sys_id", &ident::sys_id("u_pg_widget_part", "1")), ("u_name", "Part 1"), ("u_length", "12.50")],
    );
}

fn ordinary(internal_type: &str, kind: Kind) -> String {
    let text = match internal_type {
        "choice" => "a",
        // Bags that are empty over REST, and personal tags (facts §7.5).
        "variables" | "glide_var" | "records" | "sys_tags" => "",
        "document_id" => "1c741bd70b2322007518478d83673af3",
        "domain_id" | "sys_domain" => "global",
        "domain_path" => "/",
        "sys_class_path" => "/!!/!2/!(/!!",
        "days_of_weeks" => "12345",
        "currency" | "price" => "699.99",
        "currency2" => "USD;12.50",
        "glide_list" => "46d44a40c0a8016400b98a0681a55e77,free@example.com",
        "calendar_date_time" | "schedule_date_time" => "20250330T015959Z",
        "glide_precise_time" => "2025-03-30 01:59:59.123456",
        "integer_date" => "20250330",
        "integer_time" => "160432",
        "json" | "data_object" | "composite_field" => "{\"a\":[1,2,{\"b\":null}]}",
        "data_array" => "[1,2,3]",
        "name_values" | "properties" => "a=1\nb=2",
        "simple_name_values" => "{\"k\":\"v\"}",
        "xml" | "soap" => "<a b=\"c\">d</a>",
        "html" | "translated_html" => "<p>Hello &amp; goodbye</p>",
        "url" => "https://example.com/a?b=c&d=e",
        "email" => "someone@example.com",
        "ip_addr" | "ip_address" => "10.0.0.1",
        "geo_point" => "35.674989,139.764365",
        "conditions" => "active=true^priority=1^EQ",
        "table_name" => "incident",
        "field_name" => "short_description",
        "script" => "gs.info('hello');",
        "color" => "#ff8800",
        "reference" => "46d44a40c0a8016400b98a0681a55e77",
        "password" | "password2" => "K6XP56ze5W",
        "compressed" => "H4sIAAAAAAAA",
        "internal_type" => "string",
        _ => match kind {
            Kind::Boolean => "true",
            Kind::Integer => "42",
            Kind::Decimal => "12.25",
            Kind::DateTime | Kind::DueDate | Kind::LocalDateTime => "2025-03-30 01:59:59",
            Kind::Date => "2025-03-30",
            Kind::Time => "1970-01-01 16:04:32",
            Kind::Duration => "1970-01-02 04:23:17",
            Kind::Journal | Kind::JournalList => "",
            _ => internal_type,
        },
    };
    text.to_owned()
}

fn extreme(internal_type: &str, kind: Kind) -> String {
    match (internal_type, kind) {
        ("variables" | "glide_var" | "records" | "sys_tags", _) => String::new(),
        ("choice", _) => "d".to_owned(),
        ("long" | "longint", _) => "-9223372036854775808".to_owned(),
        ("float", _) => "-1.7976931348623157e308".to_owned(),
        ("decimal", _) => "-9999999999999.99".to_owned(),
        ("currency" | "price", _) => "0".to_owned(),
        ("reference", _) => "glide.maint".to_owned(),
        ("glide_list", _) => "nobody@example.com".to_owned(),
        ("ip_addr", _) => "10.0.0.1 - 10.0.0.9".to_owned(),
        ("document_id" | "domain_id", _) => "4".to_owned(),
        ("wide_text" | "html" | "script", _) => "long ".repeat(13_000),
        (_, Kind::Boolean) => "false".to_owned(),
        (_, Kind::Integer) => "-2147483648".to_owned(),
        (_, Kind::Decimal) => "0.0000001".to_owned(),
        (_, Kind::DateTime | Kind::DueDate | Kind::LocalDateTime) => "9999-12-31 23:59:59".to_owned(),
        (_, Kind::Date) => "0001-01-01".to_owned(),
        (_, Kind::Time) => "1970-01-01 23:59:59".to_owned(),
        (_, Kind::Duration) => "2016-01-01 00:02:17".to_owned(),
        (_, Kind::Journal | Kind::JournalList) => String::new(),
        (_, Kind::Text) => " leading and trailing blanks ".to_owned(),
        _ => ordinary(internal_type, kind),
    }
}

/// Text with everything that breaks copying: quotes, backslashes, CR LF, tabs, NUL, emoji, right-to-left.
fn odd(internal_type: &str, kind: Kind) -> String {
    match (internal_type, kind) {
        ("string" | "string_full_utf8" | "multi_two_lines" | "wide_text" | "html" | "translated_text", _) => {
            "\u{feff}a\"b\\c\r\nd\te\u{0}f \u{1F37A} \u{5e9}\u{5dc}\u{5d5}\u{5dd} \\N \\x00 'x' {1,2}"
                .to_owned()
        }
        ("choice", _) => "gone".to_owned(),
        (_, Kind::Boolean) => String::new(),
        (_, Kind::Integer) => "0".to_owned(),
        (_, Kind::Decimal) => "-0.5".to_owned(),
        (_, Kind::DateTime | Kind::DueDate) => "1969-12-31 23:59:59".to_owned(),
        (_, Kind::Duration) => "1970-01-01 00:00:00".to_owned(),
        _ => ordinary(internal_type, kind),
    }
}
