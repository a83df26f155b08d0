//! What capture needs in the instance, looked at now and then by the reader, and made where a new table lacks it.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::time::Duration;

use futures_util::future::join;

use super::{Capture, CaptureStore, Channel, Rules};
use crate::capture::{Subscription, Way, is_queue};
use crate::client::transport::Transport;
use crate::sync::Stop;
use crate::value::TableName;

/// Events wait for a look at the rules: what could go with others goes alone after so long.
const PATIENCE: Duration = Duration::from_secs(2);

impl<T: Transport, S: CaptureStore> Capture<T, S>
where
    S::Table: Hash,
{
    /// Finds the queue, and makes what new tables need if it was installed from here.
    pub(super) async fn look_after_rules(&mut self) -> Result<(), Stop> {
        if let Channel::Queue(None) = self.setup.channel {
            let mut queue = self.client.find_queue(&self.setup.id).await?;
            if queue.is_none() && self.setup.installed && !self.specs.is_empty() {
                match self.client.make_queue(&self.setup.id).await {
                    Ok(made) => queue = Some(made),
                    Err(failure) => self.fault = Some(failure.to_string()),
                }
            }
            self.news.queue = queue.clone();
            self.setup.channel = Channel::Queue(queue);
        }
        let way = match &self.setup.channel {
            Channel::Queue(None) => return Ok(()),
            Channel::Queue(Some(queue)) => Way::Queue(queue.clone()),
            Channel::Webhook { endpoint, key, .. } => {
                Way::Webhook { endpoint: endpoint.clone(), key: key.clone() }
            }
        };
        let subscription = Subscription { id: self.setup.id.clone(), way };
        let tables = self.specs.values().map(|spec| &spec.table).filter(|table| !is_queue(table));
        let tables: BTreeSet<TableName> = tables.cloned().collect();
        // Both in one call, where there are two.
        let client = match &subscription.way {
            Way::Queue(_) => self.client.gathering_within(PATIENCE),
            Way::Webhook { .. } => self.client.clone(),
        };
        let columns = async {
            match &subscription.way {
                Way::Queue(queue) => client.missing_columns(queue).await,
                Way::Webhook { .. } => Ok(None),
            }
        };
        let (found, missing) = join(client.inspect_rules(&subscription, &tables), columns).await;
        let mut found = found?;
        (self.fault, self.is_blind) = (None, found.is_blind);
        if let Way::Queue(queue) = &subscription.way {
            self.look_after_queue(queue, missing?.unwrap_or_default()).await;
        }
        if self.setup.installed && !found.is_blind {
            let mut given = &self.setup.rules.given & &tables;
            let mut leaving = !found.surplus.is_empty();
            if leaving {
                // Before they are taken away: a table that comes back meanwhile is new, also after a crash.
                self.note_rules(Rules { given: given.clone(), leaving }).await?;
            }
            given.extend(tables.iter().filter(|table| !found.missing.contains(table)).cloned());
            let (lost, new): (Vec<_>, Vec<_>) =
                found.missing.into_iter().partition(|table| given.contains(table));
            found.missing = lost;
            for table in new {
                match self.client.make_rule(&subscription, &table).await {
                    Ok(()) => drop(given.insert(table)),
                    Err(failure) => self.fault = Some(failure.to_string()),
                }
            }
            leaving = false;
            for rule in &found.surplus {
                // It tells of what nobody wants to know; the next look tries again.
                leaving |= self.client.remove_rule(rule).await.is_err();
            }
            self.note_rules(Rules { given, leaving }).await?;
        }
        if found.is_blind {
            found.missing =
                tables.iter().filter(|table| !self.setup.rules.given.contains(*table)).cloned().collect();
        }
        if let Some(table) = found.missing.first().filter(|_| found.is_blind) {
            self.fault = Some(format!(
                "no event has come from table \"{table}\", and this user may not see whether it has a Business Rule"
            ));
        } else if let Some(table) = found.missing.first() {
            self.fault = Some(format!("table \"{table}\" has no Business Rule \"{}\"", self.setup.id.name()));
        }
        if let Some((_, table, field)) = found.altered.first() {
            let name = self.setup.id.name();
            self.fault = Some(match field.as_str() {
                "active" => format!("Business Rule \"{name}\" on table \"{table}\" is not active"),
                field => {
                    format!("field \"{field}\" of Business Rule \"{name}\" on table \"{table}\" was changed")
                }
            });
        }
        Ok(())
    }

    /// Has the store know where there are rules.
    pub(super) async fn note_rules(&mut self, rules: Rules) -> Result<(), Stop> {
        if self.setup.rules != rules {
            self.store.note_rules(rules.clone()).await?;
            self.setup.rules = rules;
        }
        Ok(())
    }

    /// Makes the columns that a queue lacks if it was installed from here, or says so.
    async fn look_after_queue(&mut self, queue: &TableName, missing: Vec<&'static str>) {
        let Some(column) = missing.first() else { return };
        let made = match self.setup.installed {
            true => {
                self.client.complete_queue(&self.setup.id, queue).await.map_err(|failure| failure.to_string())
            }
            false => Err(format!("queue table \"{queue}\" has no column \"{column}\"")),
        };
        self.fault = made.err();
    }
}
