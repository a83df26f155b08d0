//! What scripts can do: functions over the data that this thread holds for the script that runs.

use std::cell::RefCell;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use boa_engine::object::ObjectInitializer;
use boa_engine::object::builtins::JsArray;
use boa_engine::property::Attribute;
use boa_engine::{Context, JsArgs, JsError, JsNativeError, JsResult, JsValue, NativeFunction, js_string};
use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use super::effect::Effects;
use crate::ident;
use crate::query::compile::UnknownField;
use crate::query::plan::{self, Ask};
use crate::query::{Query, script};
use crate::record::{Draft, Options, Writer};
use crate::rules::BusinessRule;
use crate::store::{Db, RowId};
use crate::users::Actor;

/// The data of a write while one of its scripts runs.
pub(super) struct Held {
    db: Db,
    actor: Actor,
    now: DateTime<Utc>,
    rules: Vec<BusinessRule>,
    effects: Effects,
    depth: usize,
    cascade_stamps: bool,
    seed: u64,
    copies: Vec<Draft>,
    aborted: bool,
}

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

impl Held {
    /// Takes the data of a writer, who has nothing meanwhile.
    pub(super) fn take(writer: &mut Writer<'_>, copies: Vec<Draft>) -> Self {
        Self {
            db: std::mem::take(writer.db),
            actor: writer.actor.clone(),
            now: writer.now,
            rules: writer.rules.to_vec(),
            effects: std::mem::take(&mut writer.effects),
            depth: writer.depth + 1,
            cascade_stamps: writer.cascade_stamps,
            seed: writer.seed,
            copies,
            aborted: false,
        }
    }

    /// Gives the data back; whether the script wants the write aborted.
    pub(super) fn give_back(self, writer: &mut Writer<'_>) -> bool {
        *writer.db = self.db;
        writer.effects = self.effects;
        self.aborted
    }

    /// Runs a write of the script's own. Scripts in it find nothing held, and hold the data themselves.
    fn write<R>(mut self, options: Options, write: impl FnOnce(&mut Writer<'_>) -> R) -> (Self, R) {
        let mut writer = Writer {
            db: &mut self.db,
            actor: &self.actor,
            now: self.now,
            rules: &self.rules,
            options,
            cascade_stamps: self.cascade_stamps,
            seed: self.seed,
            effects: std::mem::take(&mut self.effects),
            depth: self.depth,
        };
        let result = write(&mut writer);
        let effects = writer.effects;
        self.effects = effects;
        (self, result)
    }

    fn text(&self, handle: i32, field: &str) -> String {
        match usize::try_from(handle) {
            Ok(row) => match self.db.try_row(RowId(row as u32)) {
                Some(_) => self.db.text(RowId(row as u32), field),
                None => String::new(),
            },
            Err(_) => self.copy(handle).map_or_else(String::new, |copy| copy.text(&self.db, field)),
        }
    }

    fn copy(&self, handle: i32) -> Option<&Draft> {
        self.copies.get(usize::try_from(-1 - handle).ok()?)
    }

    fn class(&self, handle: i32) -> Option<crate::schema::TableId> {
        match u32::try_from(handle) {
            Ok(row) => self.db.try_row(RowId(row)).map(|row| row.table),
            Err(_) => self.copy(handle).map(|copy| copy.table),
        }
    }
}

/// Holds data for the script that is about to run.
pub(super) fn hold(held: Held) {
    HELD.set(Some(held));
}

/// What was held, after the script.
pub(super) fn release() -> Held {
    HELD.take().expect("every function puts back what it takes")
}

/// The number of copies that are held.
pub(super) fn copies() -> usize {
    HELD.with_borrow(|held| held.as_ref().map_or(0, |held| held.copies.len()))
}

fn with<R>(f: impl FnOnce(&mut Held) -> R) -> JsResult<R> {
    HELD.with_borrow_mut(|held| held.as_mut().map(f)).ok_or_else(|| failure("no transaction is open"))
}

/// Runs a write of the script's own.
fn writing<R>(options: Options, write: impl FnOnce(&mut Writer<'_>) -> R) -> JsResult<R> {
    let held = HELD.take().ok_or_else(|| failure("no transaction is open"))?;
    let (held, result) = held.write(options, write);
    HELD.set(Some(held));
    Ok(result)
}

fn failure(message: &str) -> JsError {
    JsNativeError::error().with_message(message.to_owned()).into()
}

fn text(arguments: &[JsValue], index: usize, context: &mut Context) -> JsResult<String> {
    Ok(arguments.get_or_undefined(index).to_string(context)?.to_std_string_escaped())
}

fn handle(arguments: &[JsValue], context: &mut Context) -> JsResult<i32> {
    arguments.get_or_undefined(0).to_i32(context)
}

fn string(text: &str) -> JsValue {
    js_string!(text).into()
}

/// Puts the functions into a context, as the global object `__host`.
pub(super) fn install(context: &mut Context) -> JsResult<()> {
    let functions: &[(&str, boa_engine::native_function::NativeFunctionPointer)] = &[
        ("value", value),
        ("display", display),
        ("title", title),
        ("className", class_name),
        ("hasField", has_field),
        ("hasFieldOf", has_field_of),
        ("hasTable", has_table),
        ("query", query),
        ("insert", insert),
        ("update", update),
        ("remove", remove),
        ("abort", abort),
        ("post", post),
        ("mac", mac),
        ("sha256", sha256),
        ("base64", base64),
        ("unbase64", unbase64),
        ("now", now),
        ("gs", gs),
        ("guid", guid),
        ("property", property),
        ("log", log),
    ];
    let mut object = ObjectInitializer::new(context);
    for (name, function) in functions {
        object.function(NativeFunction::from_fn_ptr(*function), js_string!(*name), 0);
    }
    let object = object.build();
    context.register_global_property(js_string!("__host"), object, Attribute::all())
}

fn value(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let (handle, field) = (handle(arguments, context)?, text(arguments, 1, context)?);
    with(|held| string(&held.text(handle, &field)))
}

fn display(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let (handle, field) = (handle(arguments, context)?, text(arguments, 1, context)?);
    with(|held| {
        let value = held.text(handle, &field);
        let db = &held.db;
        let column = held.class(handle).and_then(|class| db.schema.table(class).layout.column(&field));
        let target = column.and_then(|column| db.schema.find(column.reference.as_deref()?));
        let named = target.and_then(|target| db.find(target, &value)).map(|row| db.display_text(row));
        string(&named.unwrap_or(value))
    })
}

fn title(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let handle = handle(arguments, context)?;
    with(|held| match u32::try_from(handle).map(RowId) {
        Ok(row) if held.db.try_row(row).is_some() => string(&held.db.display_text(row)),
        _ => string(""),
    })
}

fn class_name(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let handle = handle(arguments, context)?;
    with(|held| {
        let class = held.class(handle);
        string(&class.map_or_else(String::new, |class| held.db.schema.table(class).name.to_string()))
    })
}

fn has_field(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let (table, field) = (text(arguments, 0, context)?, text(arguments, 1, context)?);
    with(|held| {
        let table = held.db.schema.find(&table);
        table.is_some_and(|table| held.db.schema.table(table).layout.slot(&field).is_some()).into()
    })
}

fn has_field_of(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let (handle, field) = (handle(arguments, context)?, text(arguments, 1, context)?);
    with(|held| {
        let class = held.class(handle);
        class.is_some_and(|class| held.db.schema.table(class).layout.slot(&field).is_some()).into()
    })
}

fn has_table(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let table = text(arguments, 0, context)?;
    with(|held| held.db.schema.find(&table).is_some().into())
}

fn query(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let (table, encoded) = (text(arguments, 0, context)?, text(arguments, 1, context)?);
    let most = arguments.get_or_undefined(2).to_u32(context)? as usize;
    let rows = with(|held| {
        let Some(table) = held.db.schema.find(&table) else { return Vec::new() };
        let session = held.actor.session(held.now);
        let query = Query::parse(&encoded);
        let ask = Ask {
            table,
            query: &query,
            // A script's condition on a field that is not there is left out, too (facts §2.1).
            unknown: UnknownField::Ignore,
            session: &session,
            offset: 0,
            limit: if most == 0 { usize::MAX } else { most },
            count: false,
            unstable: None,
        };
        plan::select(&held.db, &ask).rows
    })?;
    let rows: Vec<JsValue> = rows.into_iter().map(|row| JsValue::from(row.0)).collect();
    Ok(JsArray::from_iter(rows, context).into())
}

fn fields(json: &str) -> Vec<(String, String)> {
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    fields.into_iter().map(|(name, value)| (name, value.as_str().unwrap_or_default().to_owned())).collect()
}

fn options(arguments: &[JsValue], from: usize) -> Options {
    let on = |index| arguments.get(index).is_none_or(JsValue::to_boolean);
    Options { workflow: on(from), auto_sys_fields: on(from + 1), ..Options::default() }
}

fn insert(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let (table, values) = (text(arguments, 0, context)?, fields(&text(arguments, 1, context)?));
    let row = writing(options(arguments, 2), |writer| {
        let table = writer.db.schema.find(&table)?;
        writer.insert(table, &values).ok()
    })?;
    Ok(row.map_or(JsValue::null(), |row| JsValue::from(row.0)))
}

fn update(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let row = RowId(handle(arguments, context)?.unsigned_abs());
    let values = fields(&text(arguments, 1, context)?);
    let done = writing(options(arguments, 2), |writer| {
        writer.db.try_row(row).is_some() && writer.update(row, &values).is_ok()
    })?;
    Ok(done.into())
}

fn remove(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let row = RowId(handle(arguments, context)?.unsigned_abs());
    let done = writing(options(arguments, 1), |writer| {
        writer.db.try_row(row).is_some() && writer.delete(row).is_ok()
    })?;
    Ok(done.into())
}

fn abort(_: &JsValue, _: &[JsValue], _: &mut Context) -> JsResult<JsValue> {
    with(|held| held.aborted = true)?;
    Ok(JsValue::undefined())
}

fn post(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let request = text(arguments, 0, context)?;
    let request = serde_json::from_str(&request).map_err(|e| failure(&e.to_string()))?;
    with(|held| held.effects.posts.push(request))?;
    Ok(JsValue::undefined())
}

fn mac(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let (key, algorithm, data) =
        (text(arguments, 0, context)?, text(arguments, 1, context)?, text(arguments, 2, context)?);
    if algorithm != "HmacSHA256" {
        return Err(failure(&format!("algorithm {algorithm} is not simulated")));
    }
    let key = BASE64.decode(key).map_err(|_| failure("the key is not base64"))?;
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).map_err(|e| failure(&e.to_string()))?;
    mac.update(data.as_bytes());
    Ok(string(&BASE64.encode(mac.finalize().into_bytes())))
}

fn sha256(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let digest = Sha256::digest(text(arguments, 0, context)?.as_bytes());
    Ok(string(&match arguments.get_or_undefined(1).to_boolean() {
        true => digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        false => BASE64.encode(digest),
    }))
}

fn base64(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    Ok(string(&BASE64.encode(text(arguments, 0, context)?)))
}

fn unbase64(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let bytes = BASE64.decode(text(arguments, 0, context)?).map_err(|_| failure("this is not base64"))?;
    Ok(string(&String::from_utf8_lossy(&bytes)))
}

fn now(_: &JsValue, _: &[JsValue], _: &mut Context) -> JsResult<JsValue> {
    with(|held| JsValue::from(held.now.timestamp_millis() as f64))
}

fn gs(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let call = text(arguments, 0, context)?;
    with(|held| script::evaluate(&call, &held.actor.session(held.now)))?
        .map(|value| string(&value))
        .ok_or_else(|| failure(&format!("{call} is not simulated")))
}

fn guid(_: &JsValue, _: &[JsValue], _: &mut Context) -> JsResult<JsValue> {
    with(|held| {
        held.db.made_ids += 1;
        string(&ident::opaque(held.seed, "guid", held.db.made_ids))
    })
}

fn property(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let name = text(arguments, 0, context)?;
    with(|held| string(&held.db.property(&name)))
}

fn log(_: &JsValue, arguments: &[JsValue], context: &mut Context) -> JsResult<JsValue> {
    let (level, message) = (text(arguments, 0, context)?, text(arguments, 1, context)?);
    if level == "error" {
        with(|held| held.effects.errors.push(message))?;
    } else {
        tracing::debug!(level, message, "a script has logged");
    }
    Ok(JsValue::undefined())
}
