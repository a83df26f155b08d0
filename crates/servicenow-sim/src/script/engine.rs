//! Contexts of the JavaScript engine, one per thread and depth of nesting, and the scripts compiled in them.
//!
//! A script works on the data of the write that it runs in. While it runs the data is in this thread's keeping
//! ([`host`]), and goes back to the writer afterwards.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use boa_engine::object::builtins::JsFunction;
use boa_engine::{Context, JsError, JsValue, Script, Source, js_string};

use super::host::{self, Held};
use super::{ScriptRule, es5, word};
use crate::acl::Operation;
use crate::record::{Draft, Writer};
use crate::store::RowId;

/// Scripts compiled per context, before all are forgotten.
const COMPILED: usize = 200;
/// Turns that loops of a script may take.
const LONGEST_LOOP: u64 = 1_000_000;

/// What a rule runs on.
pub(super) struct About {
    /// The record's class.
    pub(super) table: String,
    /// The record, if it is stored.
    pub(super) row: Option<RowId>,
    /// What is done to it.
    pub(super) operation: Operation,
    /// Of a stored record what it was before, if anything; else the record itself.
    pub(super) copies: Vec<Draft>,
}

/// What a script has done.
pub(super) struct Outcome {
    /// It has called `setAbortAction(true)`.
    pub(super) aborted: bool,
    /// What it has set in `current` and not written.
    pub(super) set: Vec<(String, String)>,
}

struct Engine {
    context: Context,
    scripts: HashMap<Arc<str>, Result<Script, String>>,
}

thread_local! {
    /// By depth; one that is in use is not here. At the thread's end the engine's heap goes by itself, and may have gone
    /// before these.
    static ENGINES: RefCell<Vec<Option<ManuallyDrop<Engine>>>> = const { RefCell::new(Vec::new()) };
}

/// Runs a rule; the error is what the instance would log.
pub(super) fn run(writer: &mut Writer<'_>, rule: &ScriptRule, about: About) -> Result<Outcome, String> {
    let depth = writer.depth;
    let mut engine = ENGINES.with_borrow_mut(|engines| {
        engines.resize_with(engines.len().max(depth + 1), || None);
        engines[depth].take()
    });
    let mut engine = match engine.take() {
        Some(engine) => engine,
        None => ManuallyDrop::new(Engine::new().map_err(|e| e.to_string())?),
    };
    let held = Held::take(writer, about.copies);
    host::hold(held);
    let before = if about.row.is_some() && host::copies() > 0 { JsValue::from(-1) } else { JsValue::null() };
    let handle = about.row.map_or(JsValue::from(-1), |row| JsValue::from(row.0));
    let outcome = engine.execute(rule, &about.table, handle, word(about.operation), before);
    let aborted = host::release().give_back(writer);
    ENGINES.with_borrow_mut(|engines| engines[depth] = Some(engine));
    outcome.map(|set| Outcome { aborted, set })
}

impl Engine {
    fn new() -> Result<Self, JsError> {
        let mut context = Context::default();
        context.runtime_limits_mut().set_loop_iteration_limit(LONGEST_LOOP);
        host::install(&mut context)?;
        context.eval(Source::from_bytes(include_str!("prelude.js")))?;
        context.eval(Source::from_bytes(include_str!("es5.js")))?;
        Ok(Self { context, scripts: HashMap::new() })
    }

    fn execute(
        &mut self,
        rule: &ScriptRule,
        table: &str,
        handle: JsValue,
        operation: &str,
        before: JsValue,
    ) -> Result<Vec<(String, String)>, String> {
        let context = &mut self.context;
        let error = |e: JsError| e.to_string();
        let global = context.global_object();
        let about = global.get(js_string!("__about"), context).map_err(error)?;
        let about = function(&about).ok_or("the prelude is broken")?;
        let arguments = [js_string!(table).into(), handle, js_string!(operation).into(), before];
        let collect = about.call(&JsValue::undefined(), &arguments, context).map_err(error)?;
        if !rule.condition.is_empty() {
            let condition = self.script(&rule.condition)?;
            let holds = condition.evaluate(&mut self.context).map_err(error)?;
            if !holds.to_boolean() {
                return Ok(Vec::new());
            }
        }
        let script = self.script(&rule.script)?;
        script.evaluate(&mut self.context).map_err(error)?;
        let context = &mut self.context;
        let collect = function(&collect).ok_or("the prelude is broken")?;
        let set = collect.call(&JsValue::undefined(), &[], context).map_err(error)?;
        let set = set.to_string(context).map_err(error)?.to_std_string_escaped();
        let set: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&set).map_err(|e| e.to_string())?;
        Ok(set
            .into_iter()
            .map(|(name, value)| (name, value.as_str().unwrap_or_default().to_owned()))
            .collect())
    }

    fn script(&mut self, text: &str) -> Result<Script, String> {
        if let Some(known) = self.scripts.get(text) {
            return known.clone();
        }
        if self.scripts.len() >= COMPILED {
            self.scripts.clear();
        }
        let compiled = es5::check(text).and_then(|()| {
            Script::parse(Source::from_bytes(text), None, &mut self.context).map_err(|e| e.to_string())
        });
        self.scripts.insert(text.into(), compiled.clone());
        compiled
    }
}

fn function(value: &JsValue) -> Option<JsFunction> {
    value.as_object().and_then(|object| JsFunction::from_object(object.clone()))
}
