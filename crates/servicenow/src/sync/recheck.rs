//! Looking records up one by one, and believing what the instance shows of them.

use std::time::SystemTime;

use super::Stop;
use super::mirror::Spec;
use super::store::{Origin, Step, Store, StoredRecords};
use crate::client::Client;
use crate::client::transport::Transport;

/// Records looked up before the store hears of them.
pub(super) const IDS_AT_A_TIME: usize = 100;

/// Looks records up by `sys_id` and brings the store in line with what the instance shows of them.
pub(super) async fn recheck<T: Transport, S: Store>(
    client: &Client<T>,
    store: &S,
    table: S::Table,
    spec: &Spec,
    stored: StoredRecords,
    origin: Origin,
) -> Result<(), Stop> {
    for batch in stored.chunks(IDS_AT_A_TIME) {
        let at = SystemTime::now();
        let ids = batch.iter().map(|(id, _)| id).collect();
        let present = client.look_among(&spec.table, &spec.query, ids, &spec.layout).await?;
        let step = Step::Rechecked { looked_up: batch.to_vec(), present, origin, at };
        store.apply(table, step).await?;
    }
    Ok(())
}
