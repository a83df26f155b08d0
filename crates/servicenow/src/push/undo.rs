//! Undoing what a transaction that was rolled back has written.
//!
//! Every record is looked at, [decided](decide) about and written to at once. A failure that may pass ends the undoing;
//! it is begun anew with the same writes, and finds what has been done already.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesOrdered, TryStreamExt};
use serde_json::{Map, Value as Json};
use tokio::time::timeout;

use super::decision::{Action, Calls, Chain, Decision, Seen, Why, chains, decide, differing, is_presumed};
use super::intent::{Fields, OpenWrite};
use crate::client::Client;
use crate::client::keys::Keys;
use crate::client::retry::Effect;
use crate::client::table_api::Identity;
use crate::client::transport::Transport;
use crate::error::{Error, Result};
use crate::page::{Layout, Rows, Version};
use crate::value::{SysId, TableName};

/// The longest time from a look at a record to the answer of the write that follows: a write that had to wait for long,
/// as for a rate limit, would be based on a look that is out of date.
const PROMPT: Duration = Duration::from_secs(30);

/// How often a record is looked at that goes away whenever it is written to.
const LOOKS: usize = 3;

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The table the transaction wrote to.
    pub table: TableName,
    /// The record.
    pub sys_id: SysId,
    /// What became of it.
    pub outcome: Outcome,
}

/// What other transactions from here have to do with the version in which a record is found, or with its absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Nothing.
    Nothing,
    /// One is at the record, and it is not clear yet whether it is kept.
    UnderWay,
    /// One that was kept has led to it.
    Wrote,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as before.
    Undone,
    /// It was so already: the writes never happened, or have been undone before.
    NothingToDo,
    /// A write without an answer may still be carried out, or another transaction is at the record; it is as it was found.
    Open,
    /// It is not as before.
    Left {
        /// The reason.
        why: Why,
    },
}

/// Undoes the writes of one transaction to the tables of one server, given in the order of writing; one report per
/// record, in the order of undoing. The client's login is that of the role that wrote. Records that are reported as
/// [`Outcome::Open`] have to be undone once more when the calls, or the others, are over.
///
/// `others` is asked after a record was looked at: what has led to what is seen has been noted by then.
///
/// Fails if it has to be tried again: when the connection broke, the instance is unavailable, limits calls or refuses
/// the login. Then all writes stay open. Records that were undone by then are reported as [`Outcome::NothingToDo`]
/// the next time.
pub async fn undo<T: Transport>(
    client: &Client<T>,
    writes: &[OpenWrite],
    calls: Calls,
    others: &(impl Fn(&TableName, &SysId, Option<Version>) -> Others + Sync),
) -> Result<Vec<Report>> {
    let chains = chains(writes);
    let mut reports = Vec::with_capacity(chains.len());
    // Changes do not depend on one another as what is made and deleted does, one record referring to another.
    for run in chains.chunk_by(|a, b| a.only_updates() && b.only_updates()) {
        let mut under_way = FuturesOrdered::new();
        for chain in run {
            if under_way.len() >= client.concurrency() {
                reports.extend(under_way.try_next().await?);
            }
            under_way.push_back(settle(client, chain, calls, others));
        }
        reports.append(&mut under_way.try_collect().await?);
    }
    Ok(reports)
}

async fn settle<T: Transport>(
    client: &Client<T>,
    chain: &Chain<'_>,
    calls: Calls,
    others: &impl Fn(&TableName, &SysId, Option<Version>) -> Others,
) -> Result<Report> {
    let outcome = match settled(client, chain, calls, others).await {
        Ok(outcome) => outcome,
        // What an instance refuses in words of its own it refuses again.
        Err(Error::Refused { words, .. } | Error::Rejected { words, .. } | Error::NoTable(words))
            if !words.message.is_empty() =>
        {
            Outcome::Left { why: Why::Refused(words) }
        }
        Err(e) => return Err(e),
    };
    Ok(Report { table: chain.table().clone(), sys_id: chain.sys_id().clone(), outcome })
}

async fn settled<T: Transport>(
    client: &Client<T>,
    chain: &Chain<'_>,
    calls: Calls,
    others: &impl Fn(&TableName, &SysId, Option<Version>) -> Others,
) -> Result<Outcome> {
    let layout = Arc::new(Layout::of_text(&chain.fields()));
    for _ in 0..LOOKS {
        let now = match client.get(chain.table(), chain.sys_id(), &layout).await {
            Ok(rows) => Some(seen(&rows)),
            Err(Error::NoRecord(_)) => None,
            Err(e) => return Err(e),
        };
        if is_presumed(chain, now.as_ref()) {
            match others(chain.table(), chain.sys_id(), now.as_ref().map(|seen| seen.version)) {
                Others::Nothing => {}
                Others::Wrote if calls == Calls::AreOver => {
                    return Ok(match chain.is_single() {
                        true => Outcome::NothingToDo,
                        false => Outcome::Left { why: Why::Changed },
                    });
                }
                Others::Wrote | Others::UnderWay => return Ok(Outcome::Open),
            }
        }
        let Decision { action, stays } = decide(chain, now.as_ref(), calls);
        let is_done = action == Action::Nothing;
        match promptly(client, carry_out(client, chain, &layout, action)).await {
            Ok(Done::Left(why)) => return Ok(Outcome::Left { why }),
            Ok(Done::Later) => return Ok(Outcome::Open),
            Ok(Done::But(fields)) => {
                return Ok(match what_stays(stays, fields) {
                    Some(why) => Outcome::Left { why },
                    None if is_done => Outcome::NothingToDo,
                    None => Outcome::Undone,
                });
            }
            // It went away since the look.
            Err(Error::NoRecord(_)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Outcome::Left { why: Why::Changed })
}

/// What became of an action.
enum Done {
    /// It was to leave the record alone.
    Left(Why),
    /// It was to wait.
    Later,
    /// It is done, but these fields have other values than they were given.
    But(Vec<String>),
}

async fn carry_out<T: Transport>(
    client: &Client<T>,
    chain: &Chain<'_>,
    layout: &Arc<Layout>,
    action: Action,
) -> Result<Done> {
    let (table, id) = (chain.table(), chain.sys_id());
    let (wanted, answer) = match action {
        Action::Nothing => return Ok(Done::But(Vec::new())),
        Action::Leave(why) => return Ok(Done::Left(why)),
        Action::Wait => return Ok(Done::Later),
        Action::Remove => {
            client.delete(table, id).await?;
            return Ok(Done::But(Vec::new()));
        }
        Action::Restore(fields) => {
            // Without an answer the record is looked at again before anything else is sent.
            let answer = client.update(table, id, &body(&fields), layout, Effect::Once).await?;
            (fields, answer)
        }
        Action::Create { table: class, fields, mut maker } => {
            maker.extend(fields.clone());
            let fresh = Identity::Fresh(id.clone());
            let answer = match client.insert(&class, &fresh, &body(&maker), layout).await {
                // It would not be found, and be made twice.
                Err(e) if e.leaves_outcome_unknown() && client.keys(&class) != Keys::Taken => {
                    return Ok(Done::Left(Why::MaybeMade));
                }
                other => other?,
            };
            if Keys::seen(id, answer.id(0)) == Keys::Ignored {
                return Ok(Done::Left(Why::OtherKey(SysId::new(answer.id(0)))));
            }
            (fields, answer)
        }
    };
    let seen = seen(&answer);
    let kept = differing(&wanted, &seen).map(|(field, _)| field.clone()).collect();
    Ok(Done::But(kept))
}

/// What stays in all, if anything does.
fn what_stays(stays: Option<Why>, mut fields: Vec<String>) -> Option<Why> {
    match stays {
        Some(Why::Partly(more)) => fields.extend(more),
        Some(why) => return Some(why),
        None => {}
    }
    (!fields.is_empty()).then_some(Why::Partly(fields))
}

async fn promptly<T: Transport, R>(client: &Client<T>, write: impl Future<Output = Result<R>>) -> Result<R> {
    timeout(PROMPT, write).await.unwrap_or_else(|_| Err(Error::TimedOut { host: client.host() }))
}

fn body(fields: &Fields) -> Map<String, Json> {
    fields.iter().map(|(field, value)| (field.clone(), Json::String(value.clone()))).collect()
}

/// The record of an answer to a call on one.
fn seen(rows: &Rows) -> Seen {
    let columns = rows.layout().columns().iter().enumerate();
    let shown = columns.filter(|&(column, _)| rows.is_shown(0, column));
    let fields: BTreeMap<_, _> =
        shown.map(|(column, c)| (c.field.clone(), rows.text(0, column).to_owned())).collect();
    Seen { version: rows.version(0), fields }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::transport::HttpTransport;

    /// The compiler checks this one: a worker undoes on another thread.
    #[test]
    fn undoing_can_be_handed_to_another_thread() {
        fn is_send<F: Send>(_: &F) {}
        let _: fn(&Client<HttpTransport>, &[OpenWrite]) = |client, writes| {
            is_send(&undo(client, writes, Calls::AreOver, &|_, _, _| Others::Nothing));
        };
    }
}
