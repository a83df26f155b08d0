//! Secrets on their way into the extension's own tables. Not as parameters: those may be logged, by auto_explain for one.

use std::cell::RefCell;

use pgrx::datum::DatumWithOid;
use servicenow::client::auth::Secret;

use super::write;

thread_local! {
    static WRITTEN: RefCell<Option<Secret>> = const { RefCell::new(None) };
}

/// As [`write`], of a statement that has a secret from `servicenow._secret()`.
pub(super) fn write_secret(secret: &Secret, sql: &str, args: &[DatumWithOid<'_>]) -> usize {
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            WRITTEN.set(None);
        }
    }
    let _forgotten = Forget;
    WRITTEN.set(Some(secret.clone()));
    write(sql, args)
}

/// The secret that is being written at this very moment.
pub fn written_secret() -> Option<String> {
    WRITTEN.with_borrow(|secret| secret.as_ref().map(|secret| secret.reveal().to_owned()))
}
