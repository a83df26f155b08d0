//! Which part of the instance a path means, and the call of its handler.

use crate::http::{ApiError, Request, Response};
use crate::instance::Instance;
use crate::table_api::read::{self, Address};
use crate::table_api::write;
use crate::users::Actor;
use crate::{batch, stats, ui_meta};

/// A part of the instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// The Table API.
    Table(Address),
    /// The Aggregate API.
    Stats(Address),
    /// The Batch API.
    Batch,
    /// `/api/now/doc/table/schema[/{t}]`.
    TableSchema,
    /// `/api/now/ui/meta/{t}`.
    UiMeta(String),
    /// `/oauth_token.do`.
    Token,
    /// `/oauth_auth.do`.
    Consent,
    /// `/{t}.do?SCHEMA`.
    SchemaPage(String),
    /// Nothing.
    Unknown,
}

impl Endpoint {
    /// The part that a request's path means.
    pub(crate) fn of(request: &Request) -> Self {
        let segments = request.segments();
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["oauth_token.do"] => Self::Token,
            ["oauth_auth.do"] => Self::Consent,
            [page] if page.ends_with(".do") && request.raw_query.split('&').any(|p| p == "SCHEMA") => {
                Self::SchemaPage(page.trim_end_matches(".do").to_owned())
            }
            ["api", "now", rest @ ..] => {
                let (version, rest) = match rest {
                    [v @ ("v1" | "v2"), rest @ ..] => (format!("/{v}"), rest),
                    rest => (String::new(), rest),
                };
                let address = |table: &str, sys_id: Option<&str>| Address {
                    version: version.clone(),
                    table: table.to_owned(),
                    sys_id: sys_id.map(str::to_owned),
                };
                match rest {
                    ["table", table] => Self::Table(address(table, None)),
                    ["table", table, sys_id] => Self::Table(address(table, Some(sys_id))),
                    ["stats", table] => Self::Stats(address(table, None)),
                    ["batch"] => Self::Batch,
                    ["doc", "table", "schema"] | ["doc", "table", "schema", _] => Self::TableSchema,
                    ["ui", "meta", table] => Self::UiMeta((*table).to_owned()),
                    _ => Self::Unknown,
                }
            }
            _ => Self::Unknown,
        }
    }

    /// The name in the request log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Table(_) => "table",
            Self::Stats(_) => "stats",
            Self::Batch => "batch",
            Self::TableSchema => "doc_table_schema",
            Self::UiMeta(_) => "ui_meta",
            Self::Token => "oauth_token",
            Self::Consent => "oauth_auth",
            Self::SchemaPage(_) => "schema_page",
            Self::Unknown => "unknown",
        }
    }

    /// The name in rate limit rules.
    pub(crate) fn api(&self) -> &'static str {
        match self {
            Self::Stats(_) => "Aggregate API",
            Self::Batch => "Batch API",
            _ => "Table API",
        }
    }

    /// The table that the path names.
    pub(crate) fn table(&self) -> Option<&str> {
        match self {
            Self::Table(address) | Self::Stats(address) => Some(&address.table),
            Self::UiMeta(table) | Self::SchemaPage(table) => Some(table),
            _ => None,
        }
    }
}

/// Calls the handler of an endpoint.
pub(crate) fn dispatch(
    instance: &Instance,
    actor: &Actor,
    endpoint: &Endpoint,
    request: &Request,
) -> Response {
    handle(instance, actor, endpoint, request).unwrap_or_else(Response::from)
}

fn handle(
    instance: &Instance,
    actor: &Actor,
    endpoint: &Endpoint,
    request: &Request,
) -> Result<Response, ApiError> {
    if let Some(accept) = request.header("accept")
        && !["json", "xml", "*/*", "application/*"].iter().any(|t| accept.contains(t))
        && !accept.is_empty()
    {
        return Err(ApiError::new(406, "Not acceptable", Some("Requested media type is not supported")));
    }
    let method = request.header("x-http-method-override").unwrap_or(&request.method);
    match (endpoint, method) {
        (Endpoint::Table(address), method) => match (method, &address.sys_id) {
            ("GET" | "HEAD", None) => read::list(instance, actor, address, request),
            ("GET" | "HEAD", Some(id)) => read::one(instance, actor, address, id, request),
            ("POST", None) => write::create(instance, actor, address, request),
            ("PUT" | "PATCH", Some(id)) => write::update(instance, actor, address, id, request),
            ("DELETE", Some(id)) => write::delete(instance, actor, address, id),
            _ => Err(not_allowed()),
        },
        (Endpoint::Stats(address), "GET" | "HEAD") => {
            stats::aggregate(instance, actor, &address.table, request)
        }
        (Endpoint::Batch, "POST") => batch::run(instance, actor, request),
        (Endpoint::TableSchema, "GET") => Ok(ui_meta::tables(instance, actor)),
        (Endpoint::UiMeta(table), "GET") => ui_meta::columns(instance, actor, table),
        (Endpoint::SchemaPage(table), "GET") => Ok(ui_meta::schema_page(instance, actor, table)),
        (Endpoint::Unknown, _) => Err(ApiError::no_resource()),
        _ => Err(not_allowed()),
    }
}

fn not_allowed() -> ApiError {
    ApiError::new(405, "Method not supported", None)
}
