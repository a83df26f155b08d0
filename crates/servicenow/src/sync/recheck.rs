//! Looking records up one by one, and believing what the instance shows of them.

use super::Stop;
use super::mirror::Spec;
use super::store::{Origin, Step, Store, StoredRecords};
use crate::client::Client;
use crate::client::retry::{self, Effect, Policy};
use crate::client::table_api::List;
use crate::client::transport::Transport;
use crate::error::Error;
use crate::page::{Rows, Version};
use crate::query::ids_term;
use crate::value::SysId;

/// Records looked up by `sys_id` in one call; 32 characters each, so that the address stays short.
const IDS_AT_A_TIME: usize = 100;

/// Looks records up by `sys_id` and brings the store in line with what the instance shows of them.
pub(super) async fn recheck<T: Transport, S: Store>(
    client: &Client<T>,
    store: &S,
    table: S::Table,
    spec: &Spec,
    stored: StoredRecords,
    origin: Origin,
) -> Result<(), Stop> {
    let (plain, odd): (Vec<_>, Vec<_>) = stored.into_iter().partition(|(id, _)| id.is_plain());
    let mut batches: Vec<&[(SysId, Version)]> = plain.chunks(IDS_AT_A_TIME).collect();
    while let Some(batch) = batches.pop() {
        let query = spec.query.clone().and(ids_term(batch.iter().map(|(id, _)| id)));
        let (name, layout, limit) = (&spec.table, &spec.layout, batch.len() as u32);
        let list = List { table: name, query: &query, layout, limit, offset: 0, count: false };
        let present = match client.list(list).await {
            Ok(page) => page.rows,
            Err(e) if retry::policy(&e, Effect::Read) == Policy::Shrink && batch.len() > 1 => {
                let (left, right) = batch.split_at(batch.len() / 2);
                batches.extend([left, right]);
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        let step = Step::Rechecked { looked_up: batch.to_vec(), present, origin };
        store.apply(table, step).await?;
    }
    // An identifier that cannot stand in a query is looked up by its address.
    for (id, version) in odd {
        let present = match client.get(&spec.table, &id, &spec.layout).await {
            Ok(rows) => rows,
            Err(Error::NoRecord(_)) => Rows::new(spec.layout.clone()),
            Err(e) => return Err(e.into()),
        };
        let step = Step::Rechecked { looked_up: vec![(id, version)], present, origin };
        store.apply(table, step).await?;
    }
    Ok(())
}
