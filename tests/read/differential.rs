//! Random queries on foreign tables and on ordinary tables of the same rows: their answers are the same, and their
//! plans cost the same.
//!
//! Each run takes another seed and prints it; `READ_SEED` repeats one, beginning with the query that failed.

use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::SimpleQueryMessage;
use world::Session;
use world::random::Random;

use crate::{SCHEMAS, with_copies};

/// How long to go on with new queries.
const BUDGET: Duration = Duration::from_secs(20);
/// How many there are at least.
const AT_LEAST: u64 = 2_000;

/// What every session begins with.
const START: &str = "SET jit = off; SET statement_timeout = '20s';
    SET min_parallel_table_scan_size = 0; SET min_parallel_index_scan_size = 0;";

/// Columns by table: name and kind.
const TABLES: [(&str, &[(&str, Kind)]); 3] = [
    (
        "incident",
        &[
            ("sys_id", Kind::Id),
            ("number", Kind::Text),
            ("state", Kind::Number),
            ("state_label", Kind::Text),
            ("priority", Kind::Number),
            ("active", Kind::Boolean),
            ("caller_id", Kind::Id),
            ("assigned_to", Kind::Id),
            ("short_description", Kind::Text),
            ("opened_at", Kind::Time),
            ("closed_at", Kind::Time),
            ("reopen_count", Kind::Number),
            ("sys_class_name", Kind::Text),
        ],
    ),
    (
        "problem",
        &[
            ("sys_id", Kind::Id),
            ("number", Kind::Text),
            ("state", Kind::Number),
            ("priority", Kind::Number),
            ("active", Kind::Boolean),
            ("assigned_to", Kind::Id),
            ("opened_at", Kind::Time),
        ],
    ),
    (
        "person",
        &[
            ("sys_id", Kind::Id),
            ("name", Kind::Text),
            ("user_name", Kind::Text),
            ("active", Kind::Boolean),
            ("department", Kind::Id),
            ("sys_created_on", Kind::Time),
        ],
    ),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Id,
    Text,
    Number,
    Boolean,
    Time,
}

/// System columns, which take the foreign scan.
const SYSTEM: [&str; 4] = ["tableoid", "ctid", "xmin", "cmin"];

/// Settings that make the planner choose otherwise.
const SWITCHES: [&str; 10] = [
    "enable_hashjoin",
    "enable_mergejoin",
    "enable_nestloop",
    "enable_seqscan",
    "enable_indexscan",
    "enable_bitmapscan",
    "enable_hashagg",
    "enable_material",
    "enable_memoize",
    "enable_sort",
];

/// Something in FROM that columns can be taken of.
#[derive(Clone, Debug)]
struct Source {
    alias: String,
    columns: Vec<(String, Kind)>,
    /// It is a table, with system columns and a row type of its own.
    is_table: bool,
}

struct Generator {
    random: Random,
    aliases: usize,
}

impl Generator {
    fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("t{}", self.aliases)
    }

    /// A column of one of the sources, of a kind if there is one.
    fn column(&mut self, sources: &[Source], kind: Option<Kind>) -> Option<(String, Kind)> {
        let all: Vec<(String, Kind)> = sources
            .iter()
            .flat_map(|s| s.columns.iter().map(|(name, kind)| (format!("{}.{name}", s.alias), *kind)))
            .filter(|(_, k)| kind.is_none_or(|kind| kind == *k))
            .collect();
        (!all.is_empty()).then(|| self.random.pick(&all).clone())
    }

    fn constant(&mut self, kind: Kind) -> String {
        match kind {
            Kind::Id => format!("'{:x}'", self.random.below(16)),
            Kind::Text => {
                (*self.random.pick(&["'INC0010007'", "'New'", "'a'", "''", "'incident'", "'Z'"])).to_owned()
            }
            Kind::Number => (self.random.below(9) as i64 - 1).to_string(),
            Kind::Boolean => (*self.random.pick(&["true", "false", "NULL::boolean"])).to_owned(),
            Kind::Time => (*self.random.pick(&[
                "'2016-06-01'::timestamptz",
                "'2020-01-01Z'::timestamptz",
                "'2024-02-29'::timestamptz",
            ]))
            .to_owned(),
        }
    }

    /// An expression of a kind.
    fn value(&mut self, sources: &[Source], kind: Kind, depth: usize) -> String {
        let plain = self.column(sources, Some(kind)).map(|(name, _)| name);
        if depth == 0 || self.random.chance(50) {
            return match plain {
                Some(name) if self.random.chance(85) => name,
                _ => self.constant(kind),
            };
        }
        let (a, b) = (self.value(sources, kind, depth - 1), self.value(sources, kind, depth - 1));
        match (kind, self.random.below(5)) {
            (_, 0) => format!("coalesce({a}, {b})"),
            (_, 1) => format!("CASE WHEN {} THEN {a} ELSE {b} END", self.condition(sources, depth - 1)),
            (_, 2) => format!("nullif({a}, {b})"),
            (Kind::Number, 3) => format!("({a} + {b})"),
            (Kind::Number, _) => format!("length({})::bigint", self.value(sources, Kind::Text, depth - 1)),
            (Kind::Text, 3) => format!("({a} || {b})"),
            (Kind::Text, _) => format!("upper({a})"),
            (Kind::Time, 3) => format!("date_trunc('month', {a})"),
            (Kind::Boolean, _) => format!("({})", self.condition(sources, depth - 1)),
            _ => format!("greatest({a}, {b})"),
        }
    }

    fn any_kind(&mut self) -> Kind {
        *self.random.pick(&[Kind::Id, Kind::Text, Kind::Number, Kind::Boolean, Kind::Time])
    }

    fn condition(&mut self, sources: &[Source], depth: usize) -> String {
        if self.random.chance(30) {
            return "true".to_owned(); // else hardly any row would come through all of them
        }
        let kind = self.any_kind();
        let value = |g: &mut Self| g.value(sources, kind, depth.saturating_sub(1));
        match self.random.below(if depth == 0 { 6 } else { 12 }) {
            0 => format!("{} IS NULL", value(self)),
            1 => {
                let op = *self.random.pick(&["=", "<>", "<", ">=", "IS DISTINCT FROM"]);
                format!("{} {op} {}", value(self), value(self))
            }
            2 => {
                let list: Vec<String> = (0..3).map(|_| self.constant(kind)).collect();
                format!("{} IN ({})", value(self), list.join(", "))
            }
            3 => format!("{} LIKE '%{}%'", self.value(sources, Kind::Text, 0), self.random.below(10)),
            4 => {
                let (low, high) = (self.constant(kind), self.constant(kind));
                format!("{} BETWEEN {low} AND {high}", value(self))
            }
            5 => match sources.iter().find(|s| s.is_table) {
                Some(source) => format!("{}.{} IS NOT NULL", source.alias, self.random.pick(&SYSTEM)),
                None => "true".to_owned(),
            },
            6 => format!("NOT ({})", self.condition(sources, depth - 1)),
            7 | 8 => {
                let op = *self.random.pick(&["AND", "OR"]);
                format!(
                    "({} {op} {})",
                    self.condition(sources, depth - 1),
                    self.condition(sources, depth - 1)
                )
            }
            9 => {
                let (from, inner) = self.table();
                let mut all = inner;
                all.extend_from_slice(sources);
                let not = if self.random.chance(40) { "NOT " } else { "" };
                format!("{not}EXISTS (SELECT FROM {from} WHERE {})", self.condition(&all, depth - 1))
            }
            10 => {
                let (from, inner) = self.table();
                let inside = self.value(&inner, kind, 0);
                let not = if self.random.chance(30) { "NOT " } else { "" };
                let filter = self.condition(&inner, depth - 1);
                format!("{} {not}IN (SELECT {inside} FROM {from} WHERE {filter})", value(self))
            }
            _ => {
                let (from, inner) = self.table();
                let mut all = inner.clone();
                all.extend_from_slice(sources);
                let inside = self.value(&inner, Kind::Number, 0);
                let filter = self.condition(&all, depth - 1);
                format!(
                    "{} < (SELECT max({inside}) FROM {from} WHERE {filter})",
                    self.value(sources, Kind::Number, 0)
                )
            }
        }
    }

    /// A table, under an alias and sometimes with its columns renamed.
    fn table(&mut self) -> (String, Vec<Source>) {
        let renames = self.random.chance(10);
        self.table_renamed(renames)
    }

    fn table_renamed(&mut self, renames: bool) -> (String, Vec<Source>) {
        let (name, columns) = *self.random.pick(&TABLES);
        let alias = self.alias();
        if renames {
            let renamed: Vec<String> = (0..columns.len()).map(|n| format!("c{n}")).collect();
            let from = format!("{name} AS {alias} ({})", renamed.join(", "));
            let columns = renamed.into_iter().zip(columns.iter().map(|(_, kind)| *kind)).collect();
            return (from, vec![Source { alias, columns, is_table: true }]);
        }
        let columns = columns.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
        (format!("{name} {alias}"), vec![Source { alias, columns, is_table: true }])
    }

    /// Something to select from.
    fn from(&mut self, depth: usize) -> (String, Vec<Source>) {
        if depth == 0 {
            return self.table();
        }
        match self.random.below(8) {
            0 | 1 => self.table(),
            2 | 3 => {
                let (left, mut sources) = self.from(depth - 1);
                // Joins on the right would need parentheses.
                let (right, more) = if self.random.chance(40) { self.subquery(depth) } else { self.table() };
                let join = *self.random.pick(&["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
                let kind = self.any_kind();
                let (a, b) = (self.column(&sources, Some(kind)), self.column(&more, Some(kind)));
                let mut on = match (a, b) {
                    (Some((a, _)), Some((b, _))) => format!("{a} = {b}"),
                    _ => "false".to_owned(),
                };
                sources.extend(more);
                if join != "FULL JOIN" && self.random.chance(40) {
                    let _written = write!(on, " AND {}", self.condition(&sources, 1));
                }
                (format!("{left} {join} {right} ON {on}"), sources)
            }
            4 => {
                let ((left, _), (right, _)) = (self.table_renamed(false), self.table_renamed(false));
                let alias = self.alias();
                // What a join with USING shows is a column of neither side.
                let columns = vec![("sys_id".to_owned(), Kind::Id), ("active".to_owned(), Kind::Boolean)];
                let join = *self.random.pick(&["JOIN", "LEFT JOIN", "FULL JOIN"]);
                let inner =
                    format!("SELECT sys_id, active FROM {left} {join} {right} USING (sys_id, active)");
                (format!("({inner}) {alias}"), vec![Source { alias, columns, is_table: false }])
            }
            5 => {
                let (left, mut sources) = self.from(depth - 1);
                let (right, inner) = self.table();
                let mut all = inner.clone();
                all.extend_from_slice(&sources);
                let (alias, filter) = (self.alias(), self.condition(&all, 1));
                let limit = 1 + self.random.below(3);
                let inner_alias = inner[0].alias.clone();
                let key = inner[0].columns[0].0.clone();
                let lateral = format!(
                    "LATERAL (SELECT {inner_alias}.{key} AS k, {} AS n FROM {right} WHERE {filter} ORDER BY {inner_alias}.{key} LIMIT {limit}) {alias}",
                    self.value(&inner, Kind::Number, 1)
                );
                let columns = vec![("k".to_owned(), Kind::Id), ("n".to_owned(), Kind::Number)];
                sources.push(Source { alias, columns, is_table: false });
                let join = *self.random.pick(&["CROSS JOIN", "LEFT JOIN"]);
                let on = if join == "LEFT JOIN" { " ON true" } else { "" };
                (format!("{left} {join} {lateral}{on}"), sources)
            }
            6 => self.subquery(depth),
            _ => {
                let (left, a) = self.table();
                let (right, b) = self.table();
                let alias = self.alias();
                let (kind, other) = (self.any_kind(), self.any_kind());
                let op = *self.random.pick(&["UNION", "UNION ALL", "EXCEPT", "INTERSECT"]);
                let half = |g: &mut Self, from: &str, sources: &[Source]| {
                    let (x, y) = (g.value(sources, kind, 1), g.value(sources, other, 1));
                    format!("SELECT {x} AS x, {y} AS y FROM {from} WHERE {}", g.condition(sources, 1))
                };
                let (a, b) = (half(self, &left, &a), half(self, &right, &b));
                let columns = vec![("x".to_owned(), kind), ("y".to_owned(), other)];
                (format!("({a} {op} {b}) {alias}"), vec![Source { alias, columns, is_table: false }])
            }
        }
    }

    /// One table, or two.
    fn inner_join(&mut self) -> (String, Vec<Source>) {
        let (left, mut sources) = self.table();
        if self.random.chance(50) {
            return (left, sources);
        }
        let (right, more) = self.table();
        let kind = self.any_kind();
        let on = match (self.column(&sources, Some(kind)), self.column(&more, Some(kind))) {
            (Some((a, _)), Some((b, _))) => format!("{a} = {b}"),
            _ => "true".to_owned(),
        };
        sources.extend(more);
        (format!("{left} JOIN {right} ON {on}"), sources)
    }

    /// A query as something to select from.
    fn subquery(&mut self, depth: usize) -> (String, Vec<Source>) {
        let depth = if self.random.chance(50) { 0 } else { depth - 1 };
        let (inner, sources) = self.from(depth);
        let alias = self.alias();
        let (text, number) = (self.value(&sources, Kind::Text, 1), self.value(&sources, Kind::Number, 1));
        let filter = self.condition(&sources, 1);
        let columns = vec![
            ("a".to_owned(), Kind::Text),
            ("b".to_owned(), Kind::Number),
            ("n".to_owned(), Kind::Number),
        ];
        let inner = if self.random.chance(50) {
            format!(
                "SELECT {text} AS a, {number} AS b, count(*) AS n FROM {inner} WHERE {filter} GROUP BY 1, 2"
            )
        } else {
            // What can be pulled up into the outer query, maybe from below an outer join.
            let other = self.value(&sources, Kind::Number, 0);
            let constant = self.constant(Kind::Number);
            format!(
                "SELECT {text} AS a, coalesce({number}, {constant}) AS b, {other} AS n FROM {inner} WHERE {filter}"
            )
        };
        (format!("({inner}) {alias}"), vec![Source { alias, columns, is_table: false }])
    }

    /// A query whose answer is one, whatever the plan, but for the order of its rows.
    fn query(&mut self) -> String {
        self.aliases = 0;
        let locks = self.random.chance(15);
        // The nullable side of an outer join cannot be locked.
        let (mut from, sources) =
            if locks && self.random.chance(80) { self.inner_join() } else { self.from(2) };
        let mut with = String::new();
        if !locks && self.random.chance(15) {
            let (inner, inside) = self.table();
            let alias = self.alias();
            let kind = if self.random.chance(50) { "MATERIALIZED" } else { "NOT MATERIALIZED" };
            let filter = self.condition(&inside, 1);
            with = format!("WITH {alias} AS {kind} (SELECT * FROM {inner} WHERE {filter}) ");
            let _written = write!(
                from,
                " LEFT JOIN {alias} ON {}",
                match self.column(&sources, Some(Kind::Id)) {
                    Some((name, _)) => format!("{alias}.{} = {name}", inside[0].columns[0].0),
                    None => "false".to_owned(),
                }
            );
        }
        let mut filter = self.condition(&sources, if locks { 1 } else { 2 });
        if self.random.chance(40) {
            // Nothing that an outer join has made NULL passes. What a subquery computes is rarer than columns are.
            let from = sources.iter().filter(|s| !s.is_table || sources.iter().all(|s| s.is_table));
            let from: Vec<Source> = from.cloned().collect();
            if let Some((name, kind)) = self.column(&from, None) {
                let _written = write!(filter, " AND {name} >= {}", self.constant(kind));
            }
        }
        match self.random.below(6) {
            _ if locks => {
                // Which rows are locked is certain only if their order is.
                let tables: Vec<&Source> = sources.iter().filter(|s| s.is_table).collect();
                let keys: Vec<String> = sources
                    .iter()
                    .flat_map(|s| s.columns.iter().map(|(name, _)| format!("{}.{name}", s.alias)))
                    .collect();
                let of = match tables.first() {
                    Some(table) if self.random.chance(70) => format!(" OF {}", table.alias),
                    _ => String::new(),
                };
                let strength = *self.random.pick(&["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"]);
                let policy = *self.random.pick(&["", " SKIP LOCKED", " NOWAIT"]);
                let limit = match self.random.chance(60) {
                    true => format!("LIMIT {}", 1 + self.random.below(5)),
                    false => String::new(),
                };
                let keys = keys.join(", ");
                format!(
                    "{with}SELECT {keys} FROM {from} WHERE {filter} ORDER BY {keys} {limit}{LOCKING}{strength}{of}{policy}"
                )
            }
            0 => {
                let (kind, other) = (self.any_kind(), self.any_kind());
                let (a, b) = (self.value(&sources, kind, 1), self.value(&sources, other, 1));
                let n = self.value(&sources, Kind::Number, 1);
                let sets = ["x, y", "GROUPING SETS ((x), (y), ())", "ROLLUP (x, y)", "CUBE (x, y)"];
                let sets = *self.random.pick(&sets);
                let having = if self.random.chance(30) { " HAVING count(*) > 1" } else { "" };
                format!(
                    "{with}SELECT x, y, count(*), sum(n), min(n), bool_or(n > 2)
                     FROM (SELECT {a} AS x, {b} AS y, {n} AS n FROM {from} WHERE {filter}) g GROUP BY {sets}{having}"
                )
            }
            1 => {
                let (n, kind) = (self.value(&sources, Kind::Number, 1), self.any_kind());
                let by = self.value(&sources, kind, 0);
                format!(
                    "{with}SELECT {by} AS k, count(*) OVER (PARTITION BY {by}), sum({n}) OVER (PARTITION BY {by}),
                            dense_rank() OVER (ORDER BY {by}) FROM {from} WHERE {filter}"
                )
            }
            2 if sources[0].is_table => {
                let alias = &sources[0].alias;
                let form = *self.random.pick(&["row_to_json", "to_jsonb", "hash_record"]);
                format!(
                    "{with}SELECT {form}({alias})::text, {alias} IS NULL, {alias}::text FROM {from} WHERE {filter}"
                )
            }
            3 => {
                let (kind, n) = (self.any_kind(), 1 + self.random.below(20));
                let value = self.value(&sources, kind, 1);
                format!("{with}SELECT DISTINCT {value} AS v FROM {from} WHERE {filter} ORDER BY v LIMIT {n}")
            }
            4 => format!("{with}SELECT * FROM {from} WHERE {filter}"),
            _ => {
                let kinds = [self.any_kind(), self.any_kind(), self.any_kind()];
                let values: Vec<String> = kinds.into_iter().map(|k| self.value(&sources, k, 2)).collect();
                format!("{with}SELECT {} FROM {from} WHERE {filter}", values.join(", "))
            }
        }
    }
}

/// What a query that locks rows has in it.
const LOCKING: &str = "\nFOR ";

/// The answer to a query: its rows in some order, or its SQLSTATE. If it locks rows, how many of each table are free
/// then, as another session sees it, is part of the answer.
async fn answer(session: &Session, query: &str, other: (&Session, &str)) -> Result<Vec<String>, String> {
    if !query.contains(LOCKING) {
        return rows(session, query).await;
    }
    session.run("BEGIN").await;
    let mut answer = rows(session, query).await;
    let (observer, schema) = other;
    if let Ok(answer) = &mut answer {
        for (table, _) in TABLES {
            let free =
                format!("SELECT count(*) FROM (SELECT FROM {schema}.{table} FOR UPDATE SKIP LOCKED) free");
            answer.push(format!("{} of {table} are free", observer.value::<i64>(&free).await));
        }
    }
    session.run("ROLLBACK").await;
    answer
}

async fn rows(session: &Session, query: &str) -> Result<Vec<String>, String> {
    match session.client().simple_query(query).await {
        Ok(messages) => {
            let mut rows: Vec<String> = messages
                .iter()
                .filter_map(|message| match message {
                    SimpleQueryMessage::Row(row) => {
                        let values = (0..row.len()).map(|column| row.get(column).unwrap_or("<NULL>"));
                        Some(values.collect::<Vec<_>>().join("|"))
                    }
                    _ => None,
                })
                .collect();
            rows.sort();
            Ok(rows)
        }
        Err(e) => Err(e.as_db_error().map_or_else(|| e.to_string(), |e| e.code().code().to_owned())),
    }
}

/// What the planner thinks of a query: cost, rows and width of its plan.
async fn cost(session: &Session, query: &str) -> String {
    let plan = session.rows(&format!("EXPLAIN {query}")).await;
    let root: &str = plan[0].get(0);
    root.split_once("(cost=").map(|(_, cost)| cost.to_owned()).expect("a cost")
}

#[tokio::test(flavor = "multi_thread")]
async fn random_queries_have_the_answers_they_have_on_ordinary_tables() {
    let world = with_copies().await;
    let given = std::env::var("READ_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_nanos() as u64;
    let first: u64 = given.unwrap_or(now);
    let mut sessions = Vec::new();
    let observer = world.session().await;
    for schema in SCHEMAS {
        let session = world.session().await;
        session.run(&format!("{START} SET search_path = {schema}")).await;
        sessions.push(session);
    }
    let began = Instant::now();
    let (mut count, mut failed, mut empty) = (0, 0, 0);
    while (began.elapsed() < BUDGET || count < AT_LEAST) && given.is_none_or(|_| count < 1) {
        let seed = first.wrapping_add(count);
        count += 1;
        let mut generator = Generator { random: Random(seed), aliases: 0 };
        let mut settings = String::from("RESET parallel_setup_cost; RESET parallel_tuple_cost;");
        for switch in SWITCHES {
            let value = if generator.random.chance(15) { "off" } else { "on" };
            let _written = write!(settings, "SET {switch} = {value};");
        }
        let forced = if generator.random.chance(10) { "on" } else { "off" };
        let _written = write!(
            settings,
            "SELECT set_config(name, '{forced}', false) FROM pg_settings
             WHERE name IN ('force_parallel_mode', 'debug_parallel_query');"
        );
        if generator.random.chance(25) {
            settings.push_str("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;");
        }
        let query = generator.query();
        let mut answers = Vec::new();
        for (session, schema) in sessions.iter().zip(SCHEMAS) {
            let other = (&observer, schema);
            session.run(&settings).await;
            let how = generator.random.0 % 4;
            let answer = match how {
                0 => {
                    session.run("SET plan_cache_mode = force_generic_plan").await;
                    let locking =
                        if query.contains(LOCKING) { format!("/*{LOCKING}*/") } else { String::new() };
                    let execute = format!("EXECUTE q {locking}");
                    if session.client().batch_execute(&format!("PREPARE q AS {query}")).await.is_ok() {
                        let answer = answer(session, &execute, other).await;
                        session.run("DEALLOCATE q").await;
                        answer
                    } else {
                        answer(session, &query, other).await
                    }
                }
                _ => answer(session, &query, other).await,
            };
            answers.push(answer);
        }
        // The first statement of a session is planned before the library is there: all by foreign scans.
        if generator.random.chance(20) {
            let fresh = world.session().await;
            fresh.run(&format!("{settings} {START} SET search_path = {}", SCHEMAS[0])).await;
            let first_answer = answer(&fresh, &query, (&observer, SCHEMAS[0])).await;
            assert!(
                first_answer == answers[1],
                "READ_SEED={seed}\n{settings}\n{query};\nas the first statement of a session: {}\non ordinary tables: {}",
                shown(&first_answer),
                shown(&answers[1])
            );
        }
        // System columns take the foreign scan, and a row as a whole is put together by an expression.
        if answers[0].is_ok()
            && !SYSTEM.iter().any(|column| query.contains(column))
            && !query.contains("json")
            && !query.contains("hash_record")
        {
            let costs = [cost(&sessions[0], &query).await, cost(&sessions[1], &query).await];
            assert!(costs[0] == costs[1], "READ_SEED={seed}\n{settings}\n{query};\ncost {costs:?}");
        }
        match &answers[0] {
            Ok(rows) if rows.is_empty() => empty += 1,
            Ok(_) => {}
            Err(_) => failed += 1,
        }
        assert!(
            answers[0] == answers[1],
            "READ_SEED={seed}\n{settings}\n{query};\non foreign tables: {}\non ordinary tables: {}",
            shown(&answers[0]),
            shown(&answers[1])
        );
    }
    eprintln!(
        "{count} queries, READ_SEED={first} onwards; {failed} failed on both sides, {empty} were empty"
    );
    assert!(given.is_some() || failed * 10 < count, "most queries are valid: {failed} of {count} are not");
    assert!(given.is_some() || empty * 10 < count * 7, "most answers have rows: {empty} of {count} do not");
}

fn shown(answer: &Result<Vec<String>, String>) -> String {
    match answer {
        Ok(rows) => format!("{} rows\n{}", rows.len(), rows[..rows.len().min(20)].join("\n")),
        Err(code) => code.clone(),
    }
}
