//! Values of every type, on their way out and back.

use servicenow_sim::Dataset;
use world::World;

use crate::{KNOWN, incidents, known, world_with};

/// For each type of column an import makes: a value as SQL and as the instance stores it.
const SAMPLES: &[(&str, &str, &str)] = &[
    ("boolean", "true", "true"),
    ("bigint", "-9000000000", "-9000000000"),
    ("numeric", "12.50", "12.50"),
    ("double precision", "-1234.5", "-1234.5"),
    ("timestamp with time zone", "'2026-02-03 04:05:06+02'", "2026-02-03 02:05:06"),
    ("timestamp without time zone", "'2026-02-03 04:05:06'", "2026-02-03 04:05:06"),
    ("date", "'2026-02-03'", "2026-02-03"),
    ("time without time zone", "'16:04:32'", "1970-01-01 16:04:32"),
    ("interval", "'1 day 04:23:17'", "1970-01-02 04:23:17"),
    (
        "text",
        "E'two\\nlines, \"quotes\", \\\\ back, \u{1F37A} and a''b'",
        "two\nlines, \"quotes\", \\ back, \u{1F37A} and a'b",
    ),
];

/// Columns that take less than any text.
const PARTICULAR: &[(&str, &str, &str)] = &[
    ("u_t_choice", "'Gamma, with comma'", "c"),
    (
        "u_t_glide_list",
        "'46d44a40c0a8016400b98a0681a55e77,free@example.com'",
        "46d44a40c0a8016400b98a0681a55e77,free@example.com",
    ),
    ("u_t_reference", "'Gurney Halleck'", "46d44a40c0a8016400b98a0681a55e77"),
];

/// A value for a column.
struct Sample {
    column: String,
    type_: String,
    sql: &'static str,
    wire: &'static str,
}

impl Sample {
    fn of(column: &str, type_: &str) -> Self {
        let particular = PARTICULAR.iter().find(|(name, ..)| *name == column);
        let (_, sql, wire) = particular
            .or_else(|| SAMPLES.iter().find(|(name, ..)| *name == type_))
            .unwrap_or_else(|| panic!("no sample for {column} of type {type_}"));
        Self { column: column.to_owned(), type_: type_.to_owned(), sql, wire }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_every_type_is_stored_and_reads_back_the_same() {
    let world = world_with(&["u_pg_widget"]).await;
    let columns = world
        .db
        .rows(
            "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
             WHERE attrelid = 'u_pg_widget'::regclass AND attname ~ '^u_t_' AND attname !~ '_value$|journal' ORDER BY attnum",
        )
        .await;
    let samples: Vec<Sample> = columns.iter().map(|row| Sample::of(row.get(0), row.get(1))).collect();
    assert!(samples.len() > 100);
    let list = |part: fn(&Sample) -> String, between: &str| {
        samples.iter().map(part).collect::<Vec<_>>().join(between)
    };
    let id: String = world
        .db
        .value(&format!(
            "INSERT INTO u_pg_widget ({}) VALUES ({}) RETURNING sys_id",
            list(|s| s.column.clone(), ", "),
            list(|s| s.sql.to_owned(), ", ")
        ))
        .await;
    let record = world.sim.record("u_pg_widget", &id).expect("it was made");
    for sample in &samples {
        assert_eq!(record[&sample.column], sample.wire, "{}", sample.column);
    }
    let same = list(|s| format!("{} = {}::{}", s.column, s.sql, s.type_), " AND ");
    let shown = format!("SELECT {same} FROM u_pg_widget WHERE sys_id = '{id}'");
    assert_eq!(world.db.value::<Option<bool>>(&shown).await, Some(true), "as it was answered");
    world.db.run("SELECT servicenow.resync('u_pg_widget')").await;
    world.sync("u_pg_widget").await;
    assert_eq!(world.db.value::<Option<bool>>(&shown).await, Some(true), "as it is read again");
}

/// Ordinary, extreme, empty and odd values: none of them stops the table, and each is shown as it is.
#[tokio::test(flavor = "multi_thread")]
async fn extreme_values_of_every_type_arrive() {
    let world = World::with(Dataset::Small, "").await;
    world.import(&["u_pg_widget"]).await;
    let widget = |name: &str, columns: &str| {
        format!("SELECT {columns} FROM u_pg_widget WHERE u_name = 'Widget {name}'")
    };
    let extreme = widget(
        "extreme",
        "u_t_long = -9223372036854775808 AND u_t_date = '9999-12-31 23:59:59' AND u_t_glide_date = '0001-01-01'
         AND u_t_float = -1.7976931348623157e308 AND u_t_glide_duration = '16801 days 00:02:17' AND NOT u_t_boolean
         AND u_t_percent_complete = 0.0000001 AND u_t_reference_value = 'glide.maint' AND length(u_t_wide_text) = 65000",
    );
    assert!(world.db.value::<bool>(&extreme).await);
    let empty = widget(
        "empty",
        "num_nulls(u_t_string, u_t_integer, u_t_glide_date_time, u_t_price, u_t_time, u_t_reference)",
    );
    assert_eq!(world.db.value::<i32>(&empty).await, 6);
    let odd: String = world.db.value(&widget("odd", "u_t_string")).await;
    assert!(odd.contains("\u{1F37A}") && odd.contains("\r\n") && !odd.contains('\0'), "{odd:?}");
    let odd = widget(
        "odd",
        "u_t_integer = 0 AND u_t_decimal = -0.5 AND u_t_glide_duration = '0' AND u_t_glide_date_time = '1969-12-31 23:59:59Z'",
    );
    assert!(world.db.value::<bool>(&odd).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn times_are_sent_as_utc_whatever_the_sessions_time_zone() {
    let world = incidents().await;
    world.db.run("SET TimeZone = 'America/New_York'").await;
    world.db.run(&format!("UPDATE incident SET follow_up = '2026-01-15 12:00' WHERE {KNOWN}")).await;
    assert_eq!(world.remote("incident", &known(&world), "follow_up").as_deref(), Some("2026-01-15 17:00:00"));
    world.db.run("SET TimeZone = 'Asia/Tokyo'").await;
    let shown = format!("SELECT follow_up::text FROM incident WHERE {KNOWN}");
    assert_eq!(world.db.value::<String>(&shown).await, "2026-01-16 02:00:00+09");
}

#[tokio::test(flavor = "multi_thread")]
async fn null_empties_a_field_of_any_type() {
    let world = incidents().await;
    world
        .db
        .run(&format!(
            "UPDATE incident SET follow_up = now(), calendar_duration = '1 h', calendar_stc = 5 WHERE {KNOWN}"
        ))
        .await;
    let row = world
        .db
        .rows(&format!(
            "UPDATE incident SET follow_up = NULL, calendar_duration = NULL, calendar_stc = NULL, description = NULL,
                                 assigned_to = NULL, assignment_group_value = NULL WHERE {KNOWN}
             RETURNING num_nulls(follow_up, calendar_duration, calendar_stc, description, assigned_to, assigned_to_value,
                                 assignment_group, assignment_group_value)"
        ))
        .await;
    assert_eq!(row[0].get::<_, i32>(0), 8);
    let record = world.sim.record("incident", &known(&world)).expect("it is there");
    for field in
        ["follow_up", "calendar_duration", "calendar_stc", "description", "assigned_to", "assignment_group"]
    {
        assert_eq!(record[field], "", "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_string_is_null() {
    let world = incidents().await;
    let row = world
        .db
        .rows(&format!(
            "UPDATE incident SET description = '', assigned_to = '', assignment_group_value = '' WHERE {KNOWN}
             RETURNING description, assigned_to, assignment_group_value"
        ))
        .await;
    for column in 0..3 {
        assert_eq!(row[0].get::<_, Option<&str>>(column), None);
    }
    let record = world.sim.record("incident", &known(&world)).expect("it is there");
    assert_eq!((record["description"].as_str(), record["assigned_to"].as_str()), ("", ""));
    let row = world
        .db
        .rows("INSERT INTO incident (short_description, category, caller_id, contact_type_value) VALUES ('x', '', '', '') RETURNING category")
        .await;
    assert_eq!(row[0].get::<_, &str>(0), "Inquiry / Help", "as for NULL, the instance's default applies");
}

/// The interface cannot empty a choice, and keeps it without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_choice_that_cannot_be_emptied_says_so() {
    let world = incidents().await;
    let error = world.db.error(&format!("UPDATE incident SET category = NULL WHERE {KNOWN}")).await;
    assert_eq!(error.code().code(), "42501", "{}", error.message());
    assert!(error.message().contains("\"category\""), "{}", error.message());
    let shown = format!("SELECT category FROM incident WHERE {KNOWN}");
    assert_eq!(world.db.value::<String>(&shown).await, "Hardware");
}

/// What ServiceNow has no form for must not turn into an empty field.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_the_instance_cannot_hold_is_refused_before_any_call() {
    let world = world_with(&["u_pg_widget"]).await;
    let mut taken = Vec::new();
    for assignment in [
        "u_t_glide_date_time = 'infinity'",
        "u_t_glide_date_time = '-infinity'",
        "u_t_date = 'infinity'",
        "u_t_glide_date = 'infinity'",
        "u_t_glide_date = '-infinity'",
        "u_t_glide_date_time = '0044-03-15 12:00 BC'",
        "u_t_glide_date = '20000-01-01'",
        "u_t_decimal = 'NaN'",
        "u_t_decimal = 'infinity'",
        "u_t_float = 'NaN'",
        "u_t_float = '-infinity'",
    ] {
        let update = format!("UPDATE u_pg_widget SET {assignment} WHERE u_name = 'Widget ordinary'");
        let sent = world.writes().len();
        let refused = match world.db.client().batch_execute(&update).await {
            Ok(()) => false,
            Err(e) => e.code().is_some_and(|code| code.code().starts_with("22")),
        };
        if !refused || world.writes().len() > sent {
            taken.push((assignment, world.writes().last().and_then(|write| write.body.clone())));
        }
    }
    assert!(taken.is_empty(), "sent all the same: {taken:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn intervals_of_any_sign_and_unit_read_back_as_the_same_length() {
    let world = world_with(&["u_pg_widget"]).await;
    for interval in ["00:00:01", "100 days", "1 mon 2 days", "-1 day 01:00", "2 years", "00:00:00"] {
        let same: bool = world
            .db
            .value(&format!(
                "UPDATE u_pg_widget SET u_t_glide_duration = '{interval}' WHERE u_name = 'Widget ordinary'
                 RETURNING u_t_glide_duration = interval '{interval}'"
            ))
            .await;
        assert!(same, "{interval}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_the_users_own_types_are_written_as_text_and_numbers() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE TYPE size AS ENUM ('s', 'm', 'l');
             CREATE FOREIGN TABLE thing (sys_id varchar(32), name varchar(100), size size OPTIONS (field 'x_acme_app_size'), code char(6))
               SERVER acme OPTIONS (\"table\" 'x_acme_app_thing');
             CREATE FOREIGN TABLE small (sys_id text, number varchar(40), state smallint, made_sla text, opened_at date, priority numeric(3,1))
               SERVER acme OPTIONS (\"table\" 'incident')",
        )
        .await;
    world.db.run("DELETE FROM thing WHERE false").await;
    world.sync("small").await;
    let row = world.db.rows(&format!("UPDATE small SET state = 3, made_sla = 'false' WHERE {KNOWN} RETURNING state, made_sla, opened_at::text, priority::text")).await;
    assert_eq!((row[0].get::<_, i16>(0), row[0].get::<_, &str>(1)), (3, "false"));
    assert_eq!((row[0].get::<_, &str>(2), row[0].get::<_, &str>(3)), ("2026-02-03", "2.0"));
    assert_eq!(world.remote("incident", &known(&world), "made_sla").as_deref(), Some("false"));
    world.sim.edit().delete_where("x_acme_app_thing", "x_acme_app_size=xl").expect("a query");
    world.sync("thing").await;
    let id: String = world
        .db
        .value("INSERT INTO thing (name, size, code) VALUES ('enum', 'l', 'ab') RETURNING sys_id")
        .await;
    assert_eq!(world.remote("x_acme_app_thing", &id, "x_acme_app_size").as_deref(), Some("l"));
}
