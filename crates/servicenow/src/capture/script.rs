//! The scripts of our Business Rules: ECMAScript 5, which is what the platform runs.
//!
//! A rule must never disturb whoever saves a record: it catches what goes wrong and logs it in the instance.

use serde_json::Value as Json;

use super::queue::{MOD_COUNT, OPERATION, RECORD, SEQUENCE, TABLE, UPDATED_ON};
use super::webhook::{SIGNATURE_HEADER, TIME_HEADER};
use super::{Subscription, Way, is_scoped};
use crate::value::TableName;

/// Events stay in a queue for so many days if nobody reads them.
pub const QUEUE_DAYS: u32 = 3;
/// Events whose time in milliseconds is a multiple of this have old ones of their queue deleted. A prime: clocks that tell
/// seconds come to every remainder, too.
const PURGE_EVERY: u32 = 19;

/// What is to be told by the rule on a table.
pub fn rule(subscription: &Subscription, table: &TableName) -> String {
    let body = match &subscription.way {
        Way::Queue(queue) => into_queue(queue, table),
        Way::Webhook { endpoint, key } => post(endpoint.as_str(), key.reveal(), table),
    };
    let name = quoted(&subscription.id.name());
    // Scripts may change a record without counting that: then its version says nothing. Nor does it when the rule runs some
    // time after the change.
    let counted = match is_scoped(table) {
        true => "    function counted() { return false; }\n",
        false => {
            "    function counted() {
        return !previous || String(previous.getValue('sys_mod_count')) !== String(current.getValue('sys_mod_count')) ||
            String(current.operation()) !== 'update';
    }\n"
        }
    };
    format!(
        "(function executeRule(current, previous /*null when async*/) {{\n{counted}    try {{\n{body}    }} catch (e) {{\n        \
         gs.error({name} + ': ' + e);\n    }}\n}})(current, previous);\n"
    )
}

/// The row is written by the transaction of the change: it is there if and only if the change is.
fn into_queue(queue: &TableName, table: &TableName) -> String {
    let (queue, table) = (quoted(queue.as_str()), quoted(table.as_str()));
    format!(
        "        var time = Number(new GlideDateTime().getNumericValue());
        var event = new GlideRecord({queue});
        event.initialize();
        event.setValue('{TABLE}', {table});
        event.setValue('{RECORD}', current.getUniqueValue());
        event.setValue('{OPERATION}', current.operation());
        if (counted()) {{ event.setValue('{MOD_COUNT}', current.getValue('sys_mod_count')); }}
        event.setValue('{UPDATED_ON}', current.getValue('sys_updated_on'));
        event.setValue('{SEQUENCE}', String(time));
        event.setWorkflow(false);
        event.insert();
        if (time % {PURGE_EVERY} === 0) {{
            var old = new GlideRecord({queue});
            old.addQuery('sys_created_on', '<', gs.daysAgo({QUEUE_DAYS}));
            old.setWorkflow(false);
            old.deleteMultiple();
        }}
"
    )
}

fn post(endpoint: &str, key: &str, table: &TableName) -> String {
    let (endpoint, key, table) = (quoted(endpoint), quoted(key), quoted(table.as_str()));
    format!(
        "        var time = String(new GlideDateTime().getNumericValue());
        var body = JSON.stringify({{
            table: {table},
            record: String(current.getUniqueValue()),
            operation: String(current.operation()),
            mod_count: counted() ? String(current.getValue('sys_mod_count')) : '',
            updated_on: String(current.getValue('sys_updated_on'))
        }});
        var signer = typeof CertificateEncryption === 'undefined' ?
            new GlideCertificateEncryption() : new CertificateEncryption();
        var request = new sn_ws.RESTMessageV2();
        request.setEndpoint({endpoint});
        request.setHttpMethod('post');
        request.setRequestHeader('Content-Type', 'application/json');
        request.setRequestHeader('{TIME_HEADER}', time);
        request.setRequestHeader('{SIGNATURE_HEADER}', signer.generateMac({key}, 'HmacSHA256', time + '.' + body));
        request.setRequestBody(body);
        request.executeAsync();
"
    )
}

/// A text as a literal. JSON's are JavaScript's but for two separators of lines, which our texts do not hold.
fn quoted(text: &str) -> String {
    Json::String(text.to_owned()).to_string()
}
