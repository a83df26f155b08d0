//! Reading lists and single rows (facts §1.1, §1.3, §1.5).

use std::collections::HashMap;
use std::fmt::Write as _;

use super::params::{DisplayMode, Params};
use super::render::{Plan, Style};
use super::{input, paging};
use crate::acl::{Access, QueryUse, Reading};
use crate::fault::Cut;
use crate::http::{ApiError, Request, Response};
use crate::instance::Instance;
use crate::query::compile::{self, UnknownField};
use crate::query::plan::{self, Ask};
use crate::query::{Condition, Operator, Query};
use crate::schema::TableId;
use crate::store::{Db, RowId};
use crate::users::Actor;

/// The address of the Table API that a call used: the version segment and the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// Empty, `/v1` or `/v2`.
    pub(crate) version: String,
    /// The table's name.
    pub(crate) table: String,
    /// The row's `sys_id`.
    pub(crate) sys_id: Option<String>,
}

impl Address {
    /// `H/api/now[/v2]/table`.
    pub(crate) fn link_base(&self, base: &str) -> String {
        format!("{base}/api/now{}/table", self.version)
    }
}

/// Finds a table that web services may reach.
pub(crate) fn table(db: &Db, name: &str) -> Result<TableId, ApiError> {
    let table = db.schema.find(name).ok_or_else(|| ApiError::invalid_table(name))?;
    if db.schema.table(table).ws_access { Ok(table) } else { Err(ApiError::not_authorized()) }
}

/// The query of a call: `sysparm_query`, or else the `field=value` pairs (facts §1.3).
pub(crate) fn query_of(db: &Db, table: TableId, params: &Params, actor: &Actor) -> Query {
    if let Some(text) = &params.query {
        return Query::parse(text);
    }
    let mut query = Query::parse("");
    for (field, value) in &params.pairs {
        if compile::resolve(db, table, field).is_some() {
            let value = input::stored_form(db, table, field, value, &actor.profile);
            let condition = Condition { field: field.clone(), operator: Operator::Equal, value };
            query.alternatives[0].push(vec![condition]);
        }
    }
    query
}

/// Checks the fields of a query against the dictionary and the query ACLs (facts §1.5, §2.1).
pub(crate) fn check_query(
    db: &Db,
    table: TableId,
    query: &Query,
    access: &Access<'_>,
    unknown: UnknownField,
) -> Result<(), ApiError> {
    let uses = query
        .conditions()
        .map(|c| (c.field.as_str(), use_of(c.operator)))
        .chain(query.order.iter().map(|(f, _)| (f.as_str(), QueryUse::Range)));
    for (field, usage) in uses {
        if compile::resolve(db, table, field).is_none() {
            if unknown == UnknownField::Forbid {
                return Err(ApiError::unreadable_query());
            }
            continue;
        }
        let first = field.split('.').next().unwrap_or(field);
        if !access.queries_field(table, first, usage) {
            return Err(ApiError::unreadable_query());
        }
    }
    Ok(())
}

fn use_of(operator: Operator) -> QueryUse {
    match operator {
        Operator::Equal
        | Operator::NotEqual
        | Operator::In
        | Operator::NotIn
        | Operator::SameAs
        | Operator::NotSameAs
        | Operator::Anything
        | Operator::IsEmpty
        | Operator::IsNotEmpty
        | Operator::EmptyString => QueryUse::Match,
        _ => QueryUse::Range,
    }
}

/// What unknown fields do: the switch, or the instance's property.
pub(crate) fn unknown_field(db: &Db, switch: UnknownField) -> UnknownField {
    if switch == UnknownField::Ignore && db.property_is_on("glide.invalid_query.returns_no_rows") {
        return UnknownField::NoRows;
    }
    switch
}

/// `GET` of a list.
pub(crate) fn list(
    instance: &Instance,
    actor: &Actor,
    address: &Address,
    request: &Request,
) -> Result<Response, ApiError> {
    let params = Params::parse(&request.query);
    let switches = instance.switches();
    let rules = instance.acl_rules();
    let now = instance.clock.now();
    instance.refresh_view(&address.table);
    let db = instance.db.read();
    let table = table(&db, &address.table)?;
    let access = Access::new(&db, actor, &rules);
    let reading = access.reading(table);
    if reading == Reading::Refused {
        return Err(ApiError::not_authorized());
    }
    let query = query_of(&db, table, &params, actor);
    let unknown = unknown_field(&db, switches.unknown_field);
    check_query(&db, table, &query, &access, unknown)?;
    if !params.suppress_pagination {
        let longest =
            paging::page_url(&instance.base_url(), &request.path, &request.raw_query, params.limit, i64::MAX);
        if longest.len() * 4 > switches.max_link_header {
            return Err(ApiError::new(
                400,
                "the requested query is too long to build the response pagination header URLs",
                None,
            ));
        }
    }
    let session = actor.session(now);
    let selection = plan::select(
        &db,
        &Ask {
            table,
            query: &query,
            unknown,
            session: &session,
            offset: params.offset,
            limit: params.limit,
            count: !params.no_count || address.version == "/v1",
            unstable: (!switches.stable_order).then_some(instance.seed),
        },
    );
    if address.version == "/v1" && selection.total == Some(0) {
        return Err(ApiError::new(404, "No Record found", Some("Records matching query not found")));
    }
    // The limit has been applied; only now do ACLs take rows out (facts §1.5).
    let mut filter = access.row_filter(now);
    let visible: Vec<RowId> = if reading == Reading::Nothing {
        Vec::new()
    } else {
        selection.rows.into_iter().filter(|&r| filter.sees(r)).collect()
    };
    let base = instance.base_url();
    let link_base = address.link_base(&base);
    let style = Style {
        mode: params.display,
        exclude_link: params.exclude_link,
        link_base: &link_base,
        profile: &actor.profile,
        fields: params.fields.as_deref(),
    };
    let mut body = String::with_capacity(64 + visible.len() * estimate(&params));
    body.push_str("{\"result\":[");
    let quota = switches.row_quota.filter(|q| visible.len() > q.rows);
    let shown = quota.as_ref().map_or(visible.len(), |q| q.rows);
    render_rows(&mut body, &db, table, &visible[..shown], &access, &style);
    match quota.map(|q| q.cut) {
        None => body.push_str("]}"),
        Some(cut) => cut_short(&mut body, cut),
    }
    let mut response = Response::json(200, body);
    if let Some(total) = selection.total.filter(|_| !params.no_count) {
        response = response.with("X-Total-Count", total.to_string());
        if !params.suppress_pagination
            && let Some(links) = paging::links(
                &base,
                &request.path,
                &request.raw_query,
                params.limit,
                params.offset,
                total,
                switches.link_previous,
            )
        {
            response = response.with("Link", links);
        }
    }
    Ok(response)
}

fn estimate(params: &Params) -> usize {
    match (&params.fields, params.display) {
        (Some(fields), _) => 16 + fields.len() * 60,
        (None, DisplayMode::Both) => 7500,
        (None, _) => 3600,
    }
}

/// Appends rows, separated by commas.
pub(crate) fn render_rows(
    body: &mut String,
    db: &Db,
    table: TableId,
    rows: &[RowId],
    access: &Access<'_>,
    style: &Style<'_>,
) {
    let mut plans: HashMap<TableId, Plan> = HashMap::new();
    for (at, &row) in rows.iter().enumerate() {
        if at > 0 {
            body.push(',');
        }
        let class = db.row(row).table;
        plans
            .entry(class)
            .or_insert_with(|| Plan::new(db, table, class, access, style))
            .render(body, db, row, style);
    }
}

/// Ends a page as the 60-second quota does: the 200 is already sent (facts §3, transaction cancelled).
pub(crate) fn cut_short(body: &mut String, cut: Cut) {
    match cut {
        Cut::Error => {
            let _ = write!(body, "],{}", CANCELLED);
        }
        Cut::DanglingComma => body.push_str(",]}"),
        Cut::Broken => {
            let keep = body.len() - body.len().min(40);
            let keep = (0..=keep).rev().find(|&i| body.is_char_boundary(i)).unwrap_or(0);
            body.truncate(keep);
        }
    }
}

/// The tail of a cancelled transaction.
pub(crate) const CANCELLED: &str = "\"error\":{\"message\":\"Transaction cancelled: maximum execution time exceeded\",\"detail\":\"Transaction cancelled: maximum execution time exceeded Check logs for error trace or enable glide.rest.debug property to verify REST request processing\"},\"status\":\"failure\"}";

/// A row that the caller may see, or the 404 that hides it.
pub(crate) fn visible_row(
    db: &Db,
    instance: &Instance,
    table: TableId,
    sys_id: &str,
    access: &Access<'_>,
) -> Result<RowId, ApiError> {
    let row = db.find(table, sys_id).ok_or_else(ApiError::no_record)?;
    match access.reading(table) {
        Reading::Refused => return Err(ApiError::not_authorized()),
        Reading::Nothing => return Err(ApiError::no_record()),
        Reading::All | Reading::Where(_) => {}
    }
    if access.row_filter(instance.clock.now()).sees(row) { Ok(row) } else { Err(ApiError::no_record()) }
}

/// `GET` of one row.
pub(crate) fn one(
    instance: &Instance,
    actor: &Actor,
    address: &Address,
    sys_id: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let params = Params::parse(&request.query);
    let rules = instance.acl_rules();
    instance.refresh_view(&address.table);
    let db = instance.db.read();
    let table = table(&db, &address.table)?;
    let access = Access::new(&db, actor, &rules);
    let row = visible_row(&db, instance, table, sys_id, &access)?;
    Ok(Response::json(200, single(instance, &db, address, table, row, &access, actor, &params)))
}

/// The body of one row, `{"result":{…}}`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn single(
    instance: &Instance,
    db: &Db,
    address: &Address,
    table: TableId,
    row: RowId,
    access: &Access<'_>,
    actor: &Actor,
    params: &Params,
) -> String {
    let link_base = address.link_base(&instance.base_url());
    let style = Style {
        mode: params.display,
        exclude_link: params.exclude_link,
        link_base: &link_base,
        profile: &actor.profile,
        fields: params.fields.as_deref(),
    };
    let mut body = String::from("{\"result\":");
    // A row read through its parent shows the parent's columns; a row just written may have moved to another class.
    let class = db.row(row).table;
    let through = if db.schema.is_a(class, table) { table } else { class };
    render_rows(&mut body, db, through, &[row], access, &style);
    body.push('}');
    body
}
