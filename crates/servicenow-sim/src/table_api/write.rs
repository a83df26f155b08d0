//! Writing through the Table API: what is accepted, what is silently dropped, what is refused (facts §1.6).

use serde_json::{Map, Value};

use super::input::{self, Reader};
use super::params::Params;
use super::read::{self, Address};
use crate::acl::{Access, Operation};
use crate::http::{ApiError, Request, Response};
use crate::instance::Instance;
use crate::record::{Options, Refusal};
use crate::schema::{Kind, TableId};
use crate::store::Db;
use crate::users::Actor;

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::failed(&refusal.to_string())
    }
}

/// The largest body of a request (facts §1.7).
pub(crate) const MAX_BODY: usize = 10_485_760;

/// Reads the JSON body of a write; only the first object of an array counts (facts §1.1).
pub(crate) fn body_of(request: &Request) -> Result<Map<String, Value>, ApiError> {
    if request.body.len() > MAX_BODY {
        let detail = format!(
            "Rejected large REST payload with content-length = {} bytes. Max allowed: {MAX_BODY} bytes.",
            request.body.len()
        );
        return Err(ApiError::new(400, "Exception while reading request", Some(&detail)));
    }
    if request.body.is_empty() {
        return Ok(Map::new());
    }
    let content = request.header("content-type").unwrap_or("");
    if content.is_empty() {
        return Err(ApiError::new(400, "Content-Type header is missing", None));
    }
    if !content.to_ascii_lowercase().contains("json") {
        return Err(ApiError::new(415, "Unsupported Media Type", None));
    }
    match serde_json::from_slice::<Value>(&request.body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(Value::Array(mut items)) if items.first().is_some_and(Value::is_object) => {
            match items.swap_remove(0) {
                Value::Object(map) => Ok(map),
                _ => Ok(Map::new()),
            }
        }
        Ok(_) => Err(unreadable("The payload is not valid JSON.")),
        Err(error) => Err(unreadable(&format!("The payload is not valid JSON. {error}"))),
    }
}

fn unreadable(detail: &str) -> ApiError {
    ApiError::new(400, "Exception while reading request", Some(detail))
}

/// The accepted columns of a body in stored form; unknown, unwritable and invalid ones are left out.
fn accepted(
    instance: &Instance,
    db: &Db,
    actor: &Actor,
    class: TableId,
    access: &Access<'_>,
    params: &Params,
    body: &Map<String, Value>,
) -> Vec<(String, String)> {
    let reader = Reader {
        db,
        class,
        profile: &actor.profile,
        display: params.input_display,
        any_choice: db.property_is_on("glide.rest.choice.allow_non_existing_value"),
    };
    let admin_only = db.property_is_on("glide.rest.table_api.admin_only_sys_fields") && !actor.is_admin();
    let mut out = Vec::new();
    for (element, value) in body {
        let Some(column) = db.schema.table(class).layout.column(element) else { continue };
        if !access.writes_field(class, column) || (admin_only && crate::record::is_stamp(element)) {
            continue;
        }
        let Some(text) = input::text_of(value, params.input_display) else { continue };
        if column.kind == Kind::Password {
            // A secret of the application registry is set by its display value (facts §9); a user's password is
            // ignored with 2xx (facts §1.6).
            if params.input_display && &*db.schema.table(class).name == "oauth_entity" {
                instance.keep_pending_secret(&text);
                out.push((element.clone(), crate::ident::sys_id("cipher", &text)));
            }
            continue;
        }
        if let Some(stored) = reader.read(column, &text) {
            out.push((element.clone(), stored));
        }
    }
    out
}

fn options(params: &Params) -> Options {
    Options { auto_sys_fields: !params.suppress_auto_sys_field, ..Options::default() }
}

/// The answer of a write: the row after all rules, or nothing when the caller wants none.
#[allow(clippy::too_many_arguments)]
fn answer(
    instance: &Instance,
    db: &Db,
    actor: &Actor,
    address: &Address,
    table: TableId,
    row: crate::store::RowId,
    access: &Access<'_>,
    params: &Params,
    request: &Request,
    status: u16,
) -> Response {
    if request.header("x-no-response-body") == Some("true") {
        return Response::empty(if status == 200 { 204 } else { status });
    }
    Response::json(status, read::single(instance, db, address, table, row, access, actor, params))
}

/// `POST`: makes a row (201 with `Location`).
pub(crate) fn create(
    instance: &Instance,
    actor: &Actor,
    address: &Address,
    request: &Request,
) -> Result<Response, ApiError> {
    let params = Params::parse(&request.query);
    let rules = instance.acl_rules();
    let mut db = instance.db.write();
    let table = read::table(&db, &address.table)?;
    let body = body_of(request)?;
    let fields = {
        let access = Access::new(&db, actor, &rules);
        if !access.may(table, Operation::Create) {
            return Err(ApiError::forbidden());
        }
        accepted(instance, &db, actor, table, &access, &params, &body)
    };
    let row = instance.writer(&mut db, actor, options(&params), |writer| writer.insert(table, &fields))?;
    instance.take_pending_secret(&db, row);
    let access = Access::new(&db, actor, &rules);
    let location =
        format!("{}/{}/{}", address.link_base(&instance.base_url()), address.table, db.text(row, "sys_id"));
    let response = answer(instance, &db, actor, address, table, row, &access, &params, request, 201);
    Ok(response.with("Location", location))
}

/// `PATCH` and `PUT`, which are the same (facts §1.1): changes the fields that are there.
pub(crate) fn update(
    instance: &Instance,
    actor: &Actor,
    address: &Address,
    sys_id: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let params = Params::parse(&request.query);
    let rules = instance.acl_rules();
    let mut db = instance.db.write();
    let table = read::table(&db, &address.table)?;
    let body = body_of(request)?;
    let (row, fields) = {
        let access = Access::new(&db, actor, &rules);
        let row = read::visible_row(&db, instance, table, sys_id, &access)?;
        let class = db.row(row).table;
        if !access.may(class, Operation::Write) {
            return Err(ApiError::forbidden());
        }
        (row, accepted(instance, &db, actor, class, &access, &params, &body))
    };
    instance.writer(&mut db, actor, options(&params), |writer| writer.update(row, &fields))?;
    instance.take_pending_secret(&db, row);
    let access = Access::new(&db, actor, &rules);
    Ok(answer(instance, &db, actor, address, table, row, &access, &params, request, 200))
}

/// `DELETE`: 204 without a body.
pub(crate) fn delete(
    instance: &Instance,
    actor: &Actor,
    address: &Address,
    sys_id: &str,
) -> Result<Response, ApiError> {
    let rules = instance.acl_rules();
    let mut db = instance.db.write();
    let table = read::table(&db, &address.table)?;
    let row = {
        let access = Access::new(&db, actor, &rules);
        let row = read::visible_row(&db, instance, table, sys_id, &access)?;
        if !access.may(db.row(row).table, Operation::Delete) {
            return Err(ApiError::forbidden());
        }
        row
    };
    instance.writer(&mut db, actor, Options::default(), |writer| writer.delete(row))?;
    Ok(Response::empty(204))
}
