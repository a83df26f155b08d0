//! The data an instance starts with.

mod base;
mod captured;
mod event_log;
mod sample;
mod widget;

use std::sync::OnceLock;

use crate::instance::Secrets;
use crate::replay::Replay;
use crate::rules::BusinessRule;
use crate::schema::definition;
use crate::store::Db;
use crate::{dictionary, view};

/// How much data an instance starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dataset {
    /// About 50 incidents and a bit of everything; starts in milliseconds.
    #[default]
    Small,
    /// The last state of the 24,918 incidents of the event log and a few hundred records of everything else.
    EventLog,
    /// As many incidents as asked for, cycling those of the event log.
    Incidents(usize),
}

/// How the data is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    /// How much there is.
    pub(crate) dataset: Dataset,
    /// Incidents start at their first event instead of their last.
    pub(crate) first_events: bool,
    /// Incidents have the event log's two columns that are not among the 92.
    pub(crate) extra_columns: bool,
}

/// What a data set consists of.
pub(crate) struct Built {
    /// The data.
    pub(crate) db: Db,
    /// The secrets.
    pub(crate) secrets: Secrets,
    /// The business rules.
    pub(crate) rules: Vec<BusinessRule>,
    /// The events to replay.
    pub(crate) replay: Replay,
}

/// Builds a data set. The small one is built once per process and copied, for tests that start many instances.
pub(crate) fn build(plan: Plan) -> Built {
    static SMALL: OnceLock<(Db, Secrets)> = OnceLock::new();
    if plan != Plan::default() {
        return build_anew(plan);
    }
    let (db, secrets) = SMALL.get_or_init(|| {
        let built = build_anew(plan);
        (built.db, built.secrets)
    });
    Built { db: db.clone(), secrets: secrets.clone(), rules: base::rules(), replay: Replay::default() }
}

fn build_anew(plan: Plan) -> Built {
    let mut schema = definition::base_schema();
    if plan.extra_columns {
        event_log::add_extra_columns(&mut schema);
    }
    let mut db = Db::new(schema);
    view::define(&mut db);
    base::add_overrides(&mut db);
    dictionary::publish(&mut db);
    let secrets = base::add(&mut db);
    let mut replay = Replay::default();
    let scale = match plan.dataset {
        Dataset::Small => {
            sample::add_incidents(&mut db);
            captured::add(&mut db);
            1
        }
        Dataset::EventLog => {
            replay = event_log::load(&mut db, None, plan);
            12
        }
        Dataset::Incidents(n) => {
            replay = event_log::load(&mut db, Some(n), plan);
            12
        }
    };
    base::add_known_incident(&mut db);
    sample::add_records(&mut db, scale);
    widget::add(&mut db);
    dictionary::rebuild_choices(&mut db);
    Built { db, secrets, rules: base::rules(), replay }
}
