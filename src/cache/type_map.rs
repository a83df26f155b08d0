//! Dictionary types, decoded kinds and Postgres types.

use pgrx::pg_sys;
use servicenow::value::Kind;

/// What a stored value is decoded as for a column of this Postgres type. Types that are not listed get the
/// wire text through their input function.
pub fn kind_of(type_oid: pg_sys::Oid) -> Kind {
    match type_oid {
        pg_sys::BOOLOID => Kind::Boolean,
        pg_sys::INT2OID | pg_sys::INT4OID | pg_sys::INT8OID => Kind::Integer,
        pg_sys::FLOAT4OID | pg_sys::FLOAT8OID => Kind::Float,
        pg_sys::NUMERICOID => Kind::Numeric,
        pg_sys::TIMESTAMPTZOID => Kind::Instant,
        pg_sys::TIMESTAMPOID => Kind::DateTime,
        pg_sys::DATEOID => Kind::Date,
        pg_sys::TIMEOID => Kind::Time,
        pg_sys::INTERVALOID => Kind::Duration,
        _ => Kind::Text,
    }
}

/// The Postgres type an import gives a column of this kind.
pub fn sql_type(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Boolean => "boolean",
        Kind::Integer => "bigint",
        Kind::Float => "double precision",
        Kind::Numeric => "numeric",
        Kind::Instant => "timestamp with time zone",
        Kind::DateTime => "timestamp without time zone",
        Kind::Date => "date",
        Kind::Time => "time without time zone",
        Kind::Duration => "interval",
    }
}
