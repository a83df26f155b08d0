//! What is to be done about single records.

use std::collections::HashMap;

use servicenow::client::retry::Effect;
use servicenow::client::table_api::Identity;
use servicenow::client::write::Change;
use servicenow::page::Version;
use servicenow::push::intent::Op;
use servicenow::value::SysId;

use super::draft::{Sent, json};
use crate::catalog::Mirror;
use crate::pg::routine::OwnedRow;

/// What is to be done about one record.
pub struct Item {
    /// Its key.
    pub id: SysId,
    /// The version the cache has of it, where it matters.
    pub cached: Option<Version>,
    /// What is to be done.
    pub task: Task,
}

/// See [`Item`].
pub enum Task {
    /// To make the record.
    Insert {
        /// Somebody has chosen the key.
        is_given: bool,
        /// If there is such a record already nothing is to be done.
        or_nothing: bool,
        /// The fields.
        sent: Vec<Sent>,
    },
    /// To change it.
    Update {
        /// The fields.
        sent: Vec<Sent>,
    },
    /// Nothing differs from the cache; to make sure that nothing differs from the instance either.
    Confirm {
        /// The row as it is to be.
        row: OwnedRow,
        /// The columns that are assigned, as positions among the mirror's.
        assigned: Vec<usize>,
    },
    /// To delete it.
    Delete,
}

impl Task {
    /// What it does to its record, as far as the record itself shows.
    pub fn op(&self) -> Op {
        match self {
            Task::Insert { is_given, .. } => Op::Insert { is_fresh: !is_given, is_findable: false },
            Task::Update { .. } | Task::Confirm { .. } => Op::Update,
            Task::Delete => Op::Delete,
        }
    }

    /// Whether there may be such a record already, so that nothing is to be done.
    pub fn is_or_nothing(&self) -> bool {
        matches!(self, Task::Insert { or_nothing: true, .. })
    }

    /// The fields that are sent.
    pub fn sent(&self) -> &[Sent] {
        match self {
            Task::Insert { sent, .. } | Task::Update { sent } => sent,
            Task::Confirm { .. } | Task::Delete => &[],
        }
    }
}

impl Item {
    /// What is being done, as an infinitive.
    pub fn what(&self, mirror: &Mirror) -> String {
        let (id, table) = (self.id.as_str(), &mirror.table);
        match self.task {
            Task::Insert { .. } => format!("insert a record into table \"{table}\""),
            Task::Update { .. } | Task::Confirm { .. } => {
                format!("update record \"{id}\" of table \"{table}\"")
            }
            Task::Delete => format!("delete record \"{id}\" of table \"{table}\""),
        }
    }

    /// The fields that are sent.
    pub fn sent_mut(&mut self) -> &mut [Sent] {
        match &mut self.task {
            Task::Insert { sent, .. } | Task::Update { sent } => sent,
            Task::Confirm { .. } | Task::Delete => &mut [],
        }
    }

    /// As the client takes it.
    pub fn change(&self) -> Change {
        let id = self.id.clone();
        match &self.task {
            Task::Insert { is_given, sent, .. } => Change::Insert {
                id: if *is_given { Identity::Given(id) } else { Identity::Fresh(id) },
                fields: json(sent),
            },
            Task::Update { sent } => {
                let appends = sent.iter().any(|sent| sent.appends);
                let effect = if appends { Effect::Once } else { Effect::Idempotent };
                Change::Update { id, fields: json(sent), effect, from: self.cached }
            }
            Task::Confirm { .. } => unreachable!("it was confirmed, or is an update by now"),
            Task::Delete => Change::Delete { id },
        }
    }

    /// Has it use the keys that records were made under instead of those that were foretold.
    pub fn follow(&mut self, renamed: &HashMap<SysId, SysId>) {
        if let Some(made) = renamed.get(&self.id) {
            self.id = made.clone();
        }
        let (Task::Insert { sent, .. } | Task::Update { sent }) = &mut self.task else { return };
        let made = |id: &str| renamed.get(&SysId::new(id.trim())).map(SysId::as_str);
        for sent in sent {
            // One reference, or a list of them.
            if sent.value.split(',').any(|id| made(id).is_some()) {
                let ids: Vec<&str> = sent.value.split(',').map(|id| made(id).unwrap_or(id)).collect();
                sent.value = ids.join(",");
            }
        }
    }

    /// The memory its fields take, in bytes.
    pub fn size(&self) -> usize {
        let size = |sent: &Sent| {
            let name = sent.name.as_ref().and(sent.label.as_ref());
            sent.field.len() + sent.value.len() + name.map_or(0, String::len)
        };
        self.task.sent().iter().map(size).sum()
    }

    /// About how much memory it takes, in bytes.
    pub fn memory(&self) -> usize {
        let row = match &self.task {
            Task::Confirm { row, .. } => row.memory(),
            task => task.sent().iter().map(Sent::memory).sum(),
        };
        size_of::<Self>() + self.id.as_str().len() + row
    }

    /// The call as `push = 'dry_run'` shows it.
    pub fn show(&self, mirror: &Mirror) -> String {
        let (id, path) = (self.id.as_str(), format!("/api/now/table/{}", mirror.table));
        let mut body = json(self.task.sent());
        match self.task {
            Task::Insert { .. } => {
                body.insert("sys_id".to_owned(), id.into());
                format!("POST {path} {}", serde_json::Value::Object(body))
            }
            Task::Update { .. } => format!("PATCH {path}/{id} {}", serde_json::Value::Object(body)),
            Task::Confirm { .. } => format!("GET {path}/{id}"),
            Task::Delete => format!("DELETE {path}/{id}"),
        }
    }
}
