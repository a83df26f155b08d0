//! Made-up records of everything but the event log: a few of each in the small data set, a few hundred otherwise.

use crate::calendar;
use crate::dataset::base;
use crate::dictionary::Seeder;
use crate::ident;
use crate::query::plan::mix;
use crate::store::Db;

/// The second at which the made-up records begin.
const EPOCH: i64 = 1_704_067_200;

fn stamp(n: u64) -> String {
    let mut buffer = [0u8; 19];
    let at = EPOCH + (n * 4_357 + mix(n) % 3_000) as i64;
    calendar::write_canonical(at, &mut buffer).to_owned()
}

/// Picks an element by number.
fn pick<'a>(list: &[&'a str], n: u64) -> &'a str {
    list[(mix(n) % list.len() as u64) as usize]
}

fn id(table: &str, n: u64) -> String {
    ident::sys_id(table, &n.to_string())
}

/// Adds about 50 incidents of the small data set, some of them the ess user's.
pub(crate) fn add_incidents(db: &mut Db) {
    let seeder = Seeder::new(db, "incident", "admin", "2024-01-01 00:00:00");
    for n in 1..=48u64 {
        let number = format!("INC{:07}", 10_000 + n);
        let (opened, updated) = (stamp(n), stamp(n + 40));
        let state = pick(&["1", "2", "2", "3", "6", "7", "8"], n);
        let closed = matches!(state, "7" | "8");
        let resolved = matches!(state, "6" | "7");
        let (impact, urgency) = (pick(&["1", "2", "3", "3"], n + 3), pick(&["1", "2", "3", "3"], n + 5));
        let priority =
            (impact.parse::<u8>().unwrap_or(3) + urgency.parse::<u8>().unwrap_or(3) - 1).to_string();
        let caller = if n % 7 == 0 { base::login_id("ess.user") } else { id("sys_user", n % 12 + 1) };
        let category = pick(&["inquiry", "software", "hardware", "network", "database"], n + 9);
        let subcategory = match category {
            "software" => "email",
            "hardware" => "keyboard",
            "network" => "vpn",
            "database" => "oracle",
            _ => "antivirus",
        };
        let mod_count = (mix(n) % 9).to_string();
        let text = format!(
            "{} reported by caller {}",
            pick(&["Cannot log in", "Printer jams", "Slow network", "Disk full"], n + 2),
            n % 12 + 1
        );
        seeder.add(
            db,
            &[
                ("sys_id", &ident::sys_id("incident", &number)),
                ("number", &number),
                ("task_effective_number", &number),
                ("state", state),
                ("incident_state", state),
                ("active", if closed { "false" } else { "true" }),
                ("hold_reason", if state == "3" { "1" } else { "" }),
                ("impact", impact),
                ("urgency", urgency),
                ("priority", &priority),
                ("category", category),
                ("subcategory", subcategory),
                ("contact_type", pick(&["phone", "email", "self-service"], n)),
                ("short_description", &text),
                ("caller_id", &caller),
                ("opened_by", &caller),
                ("opened_at", &opened),
                ("assignment_group", &id("sys_user_group", n % 4 + 1)),
                ("assigned_to", if n % 5 == 0 { "" } else { GURNEY_OR[(n % 2) as usize] }),
                ("cmdb_ci", &if n % 3 == 0 { id("cmdb_ci_linux_server", 1 + n % 3) } else { String::new() }),
                ("company", &id("core_company", n % 3 + 1)),
                ("location", &id("cmn_location", n % 4 + 1)),
                ("problem_id", &if n % 6 == 0 { id("problem", n % 4 + 1) } else { String::new() }),
                ("close_code", if resolved { "Solution provided" } else { "" }),
                ("close_notes", if resolved { "Done." } else { "" }),
                ("resolved_at", if resolved { &updated } else { "" }),
                ("closed_at", if closed { &updated } else { "" }),
                (
                    "watch_list",
                    &if n % 8 == 0 { format!("{},someone@example.com", base::GURNEY) } else { String::new() },
                ),
                ("sys_created_on", &opened),
                ("sys_updated_on", &updated),
                ("sys_mod_count", &mod_count),
            ],
        );
    }
    db.numbers.insert("INC".to_owned(), 10_048);
}

const GURNEY_OR: [&str; 2] = [base::GURNEY, "6816f79cc0a8016401c5a33be04be441"];

/// Adds the rest, `scale` times as much as in the small data set.
pub(crate) fn add_records(db: &mut Db, scale: u64) {
    add_people(db, scale);
    add_configuration(db, scale);
    add_problems_and_changes(db, scale);
    add_catalog(db, scale);
    add_knowledge(db, scale);
    add_service_levels(db, scale);
    add_scoped(db, scale);
}

fn add_people(db: &mut Db, scale: u64) {
    let companies = Seeder::new(db, "core_company", "admin", "2012-02-17 19:04:49");
    for (n, name) in [(1, "ACME Corporation"), (2, "ACME Japan"), (3, "Café Zürich GmbH")] {
        companies.add(
            db,
            &[
                ("sys_id", &id("core_company", n)),
                ("name", name),
                ("revenue_per_year", "1234567.5"),
                ("customer", "true"),
            ],
        );
    }
    let departments = Seeder::new(db, "cmn_department", "admin", "2012-02-17 19:04:49");
    for (n, name) in [(1, "Sales"), (2, "IT"), (3, "Finance")] {
        departments.add(
            db,
            &[("sys_id", &id("cmn_department", n)), ("name", name), ("head_count", &(n * 7).to_string())],
        );
    }
    let places = Seeder::new(db, "cmn_location", "admin", "2012-02-19 18:39:00");
    for n in 1..=4 * scale {
        let name = format!("{} Main Street, Springfield", n * 100);
        places.add(
            db,
            &[
                ("sys_id", &id("cmn_location", n)),
                ("name", &name),
                ("full_name", &name),
                ("country", pick(&["United States", "Japan", "Schweiz"], n)),
                ("latitude", "35.674989"),
                ("longitude", "-139.764365"),
            ],
        );
    }
    let users = Seeder::new(db, "sys_user", "admin", "2012-02-18 03:04:52");
    for n in 1..=12 * scale {
        let (first, last) = (
            pick(&["Abel", "Beth", "Carol", "David", "Émile", "Fred", "Gaëlle"], n),
            pick(&["Tuter", "Anglin", "Coughlin", "Loo", "Zola", "Luddy", "O'Brien"], n + 77),
        );
        users.add(
            db,
            &[
                ("sys_id", &id("sys_user", n)),
                ("user_name", &format!("user.{n}")),
                ("first_name", first),
                ("last_name", last),
                ("name", &format!("{first} {last}")),
                ("email", &format!("user.{n}@example.com")),
                ("department", &id("cmn_department", n % 3 + 1)),
                ("manager", &id("sys_user", n / 4 + 1)),
                ("location", &id("cmn_location", n % 4 + 1)),
                ("sys_updated_on", &stamp(n)),
            ],
        );
    }
    let groups = Seeder::new(db, "sys_user_group", "admin", "2012-02-18 03:04:52");
    let members = Seeder::new(db, "sys_user_grmember", "admin", "2012-02-18 03:04:52");
    for n in 1..=4u64 {
        let name = ["Service Desk", "Database", "Hardware", "Software"][n as usize - 1];
        groups.add(
            db,
            &[
                ("sys_id", &id("sys_user_group", n)),
                ("name", name),
                ("manager", &id("sys_user", n)),
                ("sys_updated_on", &stamp(n)),
            ],
        );
        for m in 1..=3 * scale {
            members.add(
                db,
                &[
                    ("sys_id", &id("sys_user_grmember", n * 1000 + m)),
                    ("group", &id("sys_user_group", n)),
                    ("user", &id("sys_user", m)),
                ],
            );
        }
    }
}

fn add_configuration(db: &mut Db, scale: u64) {
    for (table, kind) in [
        ("cmdb_ci_linux_server", "lnx"),
        ("cmdb_ci_win_server", "win"),
        ("cmdb_ci_server", "srv"),
        ("cmdb_ci_service", "svc"),
        ("cmdb_ci", "ci"),
    ] {
        let seeder = Seeder::new(db, table, "admin", "2005-05-24 20:37:13");
        for n in 1..=3 * scale {
            let mut fields = vec![
                ("sys_id", id(table, n)),
                ("name", format!("{kind}-{n:04}")),
                ("serial_number", format!("{}{n:05}", kind.to_uppercase())),
                ("company", id("core_company", n % 3 + 1)),
                ("cost", (n * 1080).to_string()),
                ("ip_address", format!("10.0.{}.{}", n / 250, n % 250)),
                ("sys_updated_on", stamp(n)),
                ("purchase_date", stamp(n)[..10].to_owned()),
            ];
            if table.ends_with("server") {
                fields.push(("cpu_speed", "3192".to_owned()));
                fields.push(("ram", "-1".to_owned()));
            }
            let fields: Vec<(&str, &str)> = fields.iter().map(|(e, v)| (*e, v.as_str())).collect();
            seeder.add(db, &fields);
        }
    }
    let kinds = Seeder::new(db, "cmdb_rel_type", "admin", "2012-01-01 00:00:00");
    kinds.add(db, &[("sys_id", &id("cmdb_rel_type", 1)), ("name", "Depends on::Used by")]);
    let relations = Seeder::new(db, "cmdb_rel_ci", "admin", "2015-08-06 21:34:06");
    for n in 1..=3 * scale {
        relations.add(
            db,
            &[
                ("sys_id", &id("cmdb_rel_ci", n)),
                ("parent", &id("cmdb_ci_service", n)),
                ("child", &id("cmdb_ci_linux_server", n)),
                ("type", &id("cmdb_rel_type", 1)),
                ("connection_strength", "always"),
            ],
        );
    }
}

fn add_problems_and_changes(db: &mut Db, scale: u64) {
    let problems = Seeder::new(db, "problem", "glide.maint", "2024-04-02 04:51:19");
    for n in 1..=8 * scale {
        let number = format!("PRB{:07}", 40_000 + n);
        let state = pick(&["101", "102", "103", "104", "106", "107"], n);
        problems.add(
            db,
            &[
                ("sys_id", &id("problem", n)),
                ("number", &number),
                ("task_effective_number", &number),
                ("state", state),
                ("problem_state", state),
                ("active", if matches!(state, "106" | "107") { "false" } else { "true" }),
                (
                    "short_description",
                    pick(&["Switch drops connections", "Memory leak", "Certificate expired"], n),
                ),
                ("cause_notes", " <p>Switch to IPv6 caused IP issues</p> "),
                ("category", if n % 2 == 0 { "network" } else { "" }),
                ("calendar_duration", if n % 4 == 0 { "2016-01-01 00:02:17" } else { "" }),
                ("opened_by", base::GURNEY),
                ("opened_at", &stamp(n)),
                ("sys_created_on", &stamp(n)),
                ("sys_updated_on", &stamp(n + 9)),
                ("sys_mod_count", &(n % 6).to_string()),
            ],
        );
    }
    db.numbers.insert("PRB".to_owned(), 40_000 + 8 * scale);
    let changes = Seeder::new(db, "change_request", "admin", "2015-07-06 18:55:46");
    let tasks = Seeder::new(db, "change_task", "glide.maint", "2016-11-10 05:24:46");
    for n in 1..=8 * scale {
        let number = format!("CHG{:07}", 30_000 + n);
        let state = pick(&["-5", "-4", "-3", "-2", "-1", "0", "3", "4"], n);
        changes.add(
            db,
            &[
                ("sys_id", &id("change_request", n)),
                ("number", &number),
                ("task_effective_number", &number),
                ("state", state),
                ("active", if matches!(state, "3" | "4") { "false" } else { "true" }),
                ("type", pick(&["normal", "standard", "emergency"], n)),
                ("short_description", "Clear BGP sessions on a Cisco router"),
                ("implementation_plan", "-- Place router into maintenance mode\r\n-- Logon through SSH\r\n\r\nrouter#clear ip bgp"),
                ("requested_by", &base::login_id("admin")),
                ("opened_at", &stamp(n)),
                ("start_date", &stamp(n + 50)),
                ("end_date", &stamp(n + 51)),
                ("sys_created_on", &stamp(n)),
                ("sys_updated_on", &stamp(n + 11)),
                ("sys_mod_count", &(n % 11).to_string()),
            ],
        );
        let number = format!("CTASK{:07}", 10_000 + n);
        tasks.add(
            db,
            &[
                ("sys_id", &id("change_task", n)),
                ("number", &number),
                ("task_effective_number", &number),
                ("parent", &id("change_request", n)),
                ("change_request", &id("change_request", n)),
                ("opened_by", "glide.maint"),
                ("short_description", "Shut down all databases"),
                ("sys_updated_on", &stamp(n + 2)),
            ],
        );
    }
    db.numbers.insert("CHG".to_owned(), 30_000 + 8 * scale);
    db.numbers.insert("CTASK".to_owned(), 10_000 + 8 * scale);
}

fn add_catalog(db: &mut Db, scale: u64) {
    let catalogs = Seeder::new(db, "sc_catalog", "admin", "2012-02-07 00:00:00");
    catalogs.add(
        db,
        &[("sys_id", &id("sc_catalog", 1)), ("title", "Service Catalog"), ("description", "Everything")],
    );
    let categories = Seeder::new(db, "sc_category", "admin", "2012-02-07 00:00:00");
    for (n, title) in [(1, "Hardware"), (2, "Software"), (3, "Mobiles")] {
        categories.add(
            db,
            &[("sys_id", &id("sc_category", n)), ("title", title), ("sc_catalog", &id("sc_catalog", 1))],
        );
    }
    let items = Seeder::new(db, "sc_cat_item", "admin", "2012-02-07 00:00:00");
    for n in 1..=6 * scale {
        items.add(
            db,
            &[
                ("sys_id", &id("sc_cat_item", n)),
                ("name", &format!("Laptop model {n}")),
                ("price", if n % 3 == 0 { "0" } else { "1699.99" }),
                ("category", &id("sc_category", n % 3 + 1)),
                ("sc_catalogs", &id("sc_catalog", 1)),
                ("delivery_time", "1970-01-03 00:00:00"),
                ("sys_updated_on", &stamp(n)),
            ],
        );
    }
    let guides = Seeder::new(db, "sc_cat_item_guide", "admin", "2012-02-07 00:00:00");
    for n in 1..=2 * scale {
        guides.add(
            db,
            &[
                ("sys_id", &id("sc_cat_item_guide", n)),
                ("name", &format!("New hire {n}")),
                ("two_step", "true"),
            ],
        );
    }
    let requests = Seeder::new(db, "sc_request", "admin", "2022-04-25 10:21:36");
    let wanted = Seeder::new(db, "sc_req_item", "admin", "2022-04-25 10:21:36");
    let tasks = Seeder::new(db, "sc_task", "admin", "2022-04-25 10:21:36");
    for n in 1..=6 * scale {
        let requester = if n % 3 == 0 { base::login_id("ess.user") } else { id("sys_user", n % 12 + 1) };
        let number = format!("REQ{:07}", 10_000 + n);
        requests.add(
            db,
            &[
                ("sys_id", &id("sc_request", n)),
                ("number", &number),
                ("task_effective_number", &number),
                ("requested_for", &requester),
                ("price", "1699.99"),
                ("sys_updated_on", &stamp(n)),
            ],
        );
        let number = format!("RITM{:07}", 10_000 + n);
        wanted.add(
            db,
            &[
                ("sys_id", &id("sc_req_item", n)),
                ("number", &number),
                ("task_effective_number", &number),
                ("request", &id("sc_request", n)),
                ("cat_item", &id("sc_cat_item", n)),
                ("requested_for", &requester),
                ("state", "-5"),
                ("stage", "request_approved"),
                ("approval", "requested"),
                ("sys_updated_on", &stamp(n + 1)),
            ],
        );
        let number = format!("SCTASK{:07}", 10_000 + n);
        tasks.add(
            db,
            &[
                ("sys_id", &id("sc_task", n)),
                ("number", &number),
                ("task_effective_number", &number),
                ("request", &id("sc_request", n)),
                ("request_item", &id("sc_req_item", n)),
                ("short_description", "Ship it"),
                ("sys_updated_on", &stamp(n + 2)),
            ],
        );
    }
    for prefix in ["REQ", "RITM", "SCTASK"] {
        db.numbers.insert(prefix.to_owned(), 10_000 + 6 * scale);
    }
}

fn add_knowledge(db: &mut Db, scale: u64) {
    let bases = Seeder::new(db, "kb_knowledge_base", "admin", "2014-09-09 23:31:10");
    for (n, title) in [(1, "IT"), (2, "Human Resources")] {
        bases.add(
            db,
            &[("sys_id", &id("kb_knowledge_base", n)), ("title", title), ("owner", &base::login_id("admin"))],
        );
    }
    let articles = Seeder::new(db, "kb_knowledge", "admin", "2014-09-09 23:31:10");
    for n in 1..=6 * scale {
        articles.add(
            db,
            &[
                ("sys_id", &id("kb_knowledge", n)),
                ("number", &format!("KB{:07}", 10_000 + n)),
                ("short_description", &format!("How to deal with spam, part {n}")),
                ("text", "<p><strong>Don&#39;t reply</strong></p>\n<ul><li>Be \"careful\"  <br /></li></ul>"),
                ("workflow_state", pick(&["draft", "published", "retired"], n)),
                ("kb_knowledge_base", &id("kb_knowledge_base", n % 2 + 1)),
                ("author", base::GURNEY),
                ("published", "2014-09-09"),
                ("sys_view_count", &(n * 997).to_string()),
                ("sys_updated_on", &stamp(n)),
            ],
        );
    }
    db.numbers.insert("KB".to_owned(), 10_000 + 6 * scale);
}

fn add_service_levels(db: &mut Db, scale: u64) {
    let definitions = Seeder::new(db, "contract_sla", "admin", "2012-02-07 00:00:00");
    for (n, name) in [(1, "Priority 1 resolution (1 hour)"), (2, "Priority 2 resolution (8 hour)")] {
        definitions.add(
            db,
            &[
                ("sys_id", &id("contract_sla", n)),
                ("name", name),
                ("target", "resolution"),
                ("duration", if n == 1 { "1970-01-01 01:00:00" } else { "1970-01-01 08:00:00" }),
                ("start_condition", "active=true^priority=1^EQ"),
                ("stop_condition", "stateIN6,7^EQ"),
            ],
        );
    }
    let incidents: Vec<String> = db
        .schema
        .find("incident")
        .map(|t| db.scan(t).take(6 * scale as usize).map(|r| db.text(r, "sys_id")).collect())
        .unwrap_or_default();
    let slas = Seeder::new(db, "task_sla", "system", "2024-01-05 00:00:00");
    for (n, incident) in incidents.iter().enumerate() {
        let n = n as u64 + 1;
        slas.add(
            db,
            &[
                ("sys_id", &id("task_sla", n)),
                ("task", incident),
                ("sla", &id("contract_sla", n % 2 + 1)),
                ("stage", pick(&["in_progress", "completed", "paused"], n)),
                ("percentage", &format!("{}.{:02}", n * 37 % 250, n % 100)),
                ("duration", "1970-01-01 00:45:12"),
                ("start_time", &stamp(n)),
                ("sys_updated_on", &stamp(n)),
            ],
        );
    }
}

fn add_scoped(db: &mut Db, scale: u64) {
    let things = Seeder::new(db, "x_acme_app_thing", "admin", "2025-01-01 00:00:00");
    for n in 1..=5 * scale {
        things.add(
            db,
            &[
                ("sys_id", &id("x_acme_app_thing", n)),
                ("name", &format!("Thing {n}")),
                ("x_acme_app_size", pick(&["s", "m", "l", "xl"], n)),
                ("code", &format!("T-{n:04}")),
                ("owner", &id("sys_user", n)),
                ("parent", &if n > 1 { id("x_acme_app_thing", 1) } else { String::new() }),
                ("sys_updated_on", &stamp(n)),
            ],
        );
    }
    let fixed = Seeder::new(db, "u_pg_static", "admin", "2025-01-01 00:00:00");
    for n in 1..=5 * scale {
        fixed.add(
            db,
            &[("sys_id", &id("u_pg_static", n)), ("u_code", &format!("S{n}")), ("u_text", "no stamps here")],
        );
    }
    let rows = Seeder::new(db, "sys_plugins", "admin", "2012-01-01 00:00:00");
    rows.add(db, &[("sys_id", &id("sys_plugins", 1)), ("name", "Incident"), ("id", "com.snc.incident")]);
}
