//! The instance itself: everything that the handlers share.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::acl::AclRule;
use crate::clock::Clock;
use crate::edit::Deferred;
use crate::fault::Faults;
use crate::http::gate::Gate;
use crate::oauth::{self, JwtKey, Tokens};
use crate::record::{Options, Writer};
use crate::replay::Replay;
use crate::request_log::RequestLog;
use crate::rules::BusinessRule;
use crate::script::effect::{Effects, Outbox};
use crate::store::{Db, RowId};
use crate::switch::Switches;
use crate::users::Actor;
use crate::{audit, view};

/// Secrets, kept apart from the rows so that no read can show them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets {
    /// Passwords by user name.
    pub(crate) passwords: HashMap<String, String>,
    /// Client secrets by the `sys_id` of the registry entry.
    pub(crate) clients: HashMap<String, String>,
    /// User names by API key.
    pub(crate) api_keys: HashMap<String, String>,
    /// Keys for assertions by client.
    pub(crate) jwt_keys: HashMap<String, Vec<JwtKey>>,
}

/// The shared state of a simulator.
#[derive(Debug)]
pub(crate) struct Instance {
    /// The data.
    pub(crate) db: RwLock<Db>,
    /// The virtual clock.
    pub(crate) clock: Clock,
    /// The seed of everything that looks random.
    pub(crate) seed: u64,
    /// The faults in force.
    pub(crate) faults: Faults,
    /// The request log.
    pub(crate) log: RequestLog,
    /// OAuth tokens.
    pub(crate) tokens: Tokens,
    /// Sessions, semaphores, rate limits.
    pub(crate) gate: Gate,
    /// The replay of the event log.
    pub(crate) replay: Replay,
    /// Edits that are stamped but not visible yet.
    pub(crate) deferred: Mutex<Vec<Deferred>>,
    /// What scripts have left to be done.
    pub(crate) outbox: Outbox,
    switches: RwLock<Arc<Switches>>,
    acl: RwLock<Arc<Vec<AclRule>>>,
    rules: RwLock<Arc<Vec<BusinessRule>>>,
    secrets: RwLock<Secrets>,
    pending_secret: Mutex<Option<String>>,
    base_url: OnceLock<String>,
    views: Mutex<HashMap<String, u64>>,
}

impl Instance {
    /// An instance over some data.
    pub(crate) fn new(db: Db, seed: u64, secrets: Secrets, rules: Vec<BusinessRule>, replay: Replay) -> Self {
        Self {
            db: RwLock::new(db),
            clock: Clock::default(),
            seed,
            faults: Faults::default(),
            log: RequestLog::default(),
            tokens: Tokens::default(),
            gate: Gate::default(),
            replay,
            deferred: Mutex::default(),
            outbox: Outbox::default(),
            switches: RwLock::default(),
            acl: RwLock::default(),
            rules: RwLock::new(Arc::new(rules)),
            secrets: RwLock::new(secrets),
            pending_secret: Mutex::default(),
            base_url: OnceLock::new(),
            views: Mutex::default(),
        }
    }

    /// The instance's own address, which links carry whatever host was asked (facts §1.4).
    pub(crate) fn base_url(&self) -> String {
        self.base_url.get().cloned().unwrap_or_default()
    }

    /// Sets the instance's address, once.
    pub(crate) fn set_base_url(&self, url: String) {
        self.base_url.get_or_init(|| url);
    }

    /// The switches as they are now.
    pub(crate) fn switches(&self) -> Arc<Switches> {
        Arc::clone(&self.switches.read())
    }

    /// Changes the switches.
    pub(crate) fn change_switches(&self, change: impl FnOnce(&mut Switches)) {
        let mut switches = self.switches.write();
        change(Arc::make_mut(&mut switches));
    }

    /// The added access rules.
    pub(crate) fn acl_rules(&self) -> Arc<Vec<AclRule>> {
        Arc::clone(&self.acl.read())
    }

    /// Changes the added access rules.
    pub(crate) fn change_acl(&self, change: impl FnOnce(&mut Vec<AclRule>)) {
        change(Arc::make_mut(&mut self.acl.write()));
    }

    /// Changes the business rules.
    pub(crate) fn change_rules(&self, change: impl FnOnce(&mut Vec<BusinessRule>)) {
        change(Arc::make_mut(&mut self.rules.write()));
    }

    /// Runs a write.
    pub(crate) fn writer<R>(
        &self,
        db: &mut Db,
        actor: &Actor,
        options: Options,
        write: impl FnOnce(&mut Writer<'_>) -> R,
    ) -> R {
        let rules = Arc::clone(&self.rules.read());
        let mut writer = Writer {
            db,
            actor,
            now: self.clock.now(),
            rules: &rules,
            options,
            cascade_stamps: self.switches().cascade_stamps,
            seed: self.seed,
            effects: Effects::default(),
            depth: 0,
        };
        let result = write(&mut writer);
        let effects = writer.effects;
        self.outbox.take(actor, effects);
        result
    }

    /// Carries out what has come due: delayed commits and the pruning of `sys_audit_delete`.
    pub(crate) fn settle(&self) {
        crate::edit::settle(self);
        if let Some(horizon) = self.switches().audit_delete_horizon_s {
            let oldest = self.clock.now().timestamp() - horizon as i64;
            audit::prune_deletes(&mut self.db.write(), oldest);
        }
    }

    /// Rebuilds a database view when one of its tables changed.
    pub(crate) fn refresh_view(&self, name: &str) {
        let changes = {
            let db: RwLockReadGuard<'_, Db> = self.db.read();
            match db.schema.find(name) {
                Some(table) if db.schema.table(table).view.is_some() => db.changes(),
                _ => return,
            }
        };
        let mut views = self.views.lock();
        if views.get(name) == Some(&changes) {
            return;
        }
        let mut db = self.db.write();
        view::rebuild(&mut db, name);
        views.insert(name.to_owned(), db.changes());
    }

    /// Changes the secrets.
    pub(crate) fn change_secrets(&self, change: impl FnOnce(&mut Secrets)) {
        change(&mut self.secrets.write());
    }

    /// True when a user may log in with this password.
    pub(crate) fn password_matches(&self, db: &Db, user: &str, password: &str) -> bool {
        self.secrets.read().passwords.get(user).is_some_and(|p| p == password) && oauth::may_log_in(db, user)
    }

    /// True when a user exists, is active and not locked out.
    pub(crate) fn user_is_active(&self, db: &Db, user: &str) -> bool {
        oauth::may_log_in(db, user)
    }

    /// True when the secret of a registry entry is this one.
    pub(crate) fn client_secret_matches(&self, entity: &str, secret: &str) -> bool {
        self.secrets.read().clients.get(entity).is_some_and(|s| s == secret)
    }

    /// The user bound to an API key.
    pub(crate) fn api_key_user(&self, key: &str) -> Option<String> {
        self.secrets.read().api_keys.get(key).cloned()
    }

    /// The keys that a client signs assertions with.
    pub(crate) fn jwt_keys(&self, client: &str) -> Vec<JwtKey> {
        self.secrets.read().jwt_keys.get(client).cloned().unwrap_or_default()
    }

    /// Keeps a client secret until the row of its registry entry is written.
    pub(crate) fn keep_pending_secret(&self, secret: &str) {
        *self.pending_secret.lock() = Some(secret.to_owned());
    }

    /// Binds the kept client secret to a written registry entry.
    pub(crate) fn take_pending_secret(&self, db: &Db, row: RowId) {
        if let Some(secret) = self.pending_secret.lock().take() {
            let id = db.text(row, "sys_id");
            self.secrets.write().clients.insert(id, secret);
        }
    }
}
