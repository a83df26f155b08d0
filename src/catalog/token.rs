//! Refresh tokens that only a person gets, for a standby that takes over: `servicenow.token`; and the user mappings they
//! belong to.

use pgrx::pg_sys;
use servicenow::client::auth::Secret;

use super::secret::write_secret;
use super::{WRAPPER, get, read, write};

/// All user mappings of the wrapper's servers: server and mapping.
pub fn mappings() -> Vec<(pg_sys::Oid, pg_sys::Oid)> {
    let wrapper = WRAPPER.to_string_lossy();
    read(
        "SELECT s.oid, m.oid FROM pg_user_mapping m JOIN pg_foreign_server s ON s.oid = m.umserver
         JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw WHERE w.fdwname = $1::text",
        &[wrapper.as_ref().into()],
        |rows| rows.filter_map(|row| Some((get(&row, 1)?, get(&row, 2)?))).collect(),
    )
}

/// The refresh token that was kept of a login.
pub fn kept_token(login: &str) -> Option<Secret> {
    let token =
        read("SELECT refresh_token FROM servicenow.token WHERE login = $1", &[login.into()], |mut rows| {
            rows.next().and_then(|row| get::<String>(&row, 1))
        });
    token.map(Secret::new)
}

/// Keeps the refresh token of a login. By the worker only.
pub fn keep_token(login: &str, token: &Secret) {
    write_secret(
        token,
        "INSERT INTO servicenow.token AS t (login, refresh_token) VALUES ($1, servicenow._secret())
         ON CONFLICT (login) DO UPDATE SET refresh_token = excluded.refresh_token
         WHERE t.refresh_token <> excluded.refresh_token",
        &[login.into()],
    );
}

/// Forgets the refresh tokens of logins that are no more. By the worker only.
pub fn forget_tokens(is_over: impl Fn(&str) -> bool) {
    let kept: Vec<String> =
        read("SELECT login FROM servicenow.token", &[], |rows| rows.filter_map(|row| get(&row, 1)).collect());
    for login in kept.iter().filter(|login| is_over(login)) {
        write("DELETE FROM servicenow.token WHERE login = $1", &[login.as_str().into()]);
    }
}
