//! A table of many records, mirrored in pieces.

use servicenow_sim::Dataset;
use world::World;

use crate::blocks;

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_mirrored_in_pieces_below_a_partitioned_one() {
    let world = World::bare(Dataset::Small).await;
    world.set_up("").await;
    let [_update, _publish, _define, pieces] = blocks()[..] else { panic!("four blocks") };
    world.db.run(pieces).await;
    world.db.run("CREATE FOREIGN TABLE task (sys_id text, number text, short_description text, sys_class_name text) SERVER acme").await;
    for piece in ["task", "task_0", "task_4", "task_8"] {
        world.sync(piece).await;
        let rows = world.db.value::<i64>(&format!("SELECT count(*) FROM {piece}")).await;
        assert!(rows > 0, "{piece}");
    }
    let alike = "SELECT NOT EXISTS (TABLE task EXCEPT ALL TABLE task_all) AND NOT EXISTS (TABLE task_all EXCEPT ALL TABLE task)";
    assert!(world.db.value::<bool>(alike).await);

    let id = world.find("incident", "number=INC0012345");
    let one = format!("SELECT number FROM task_all WHERE sys_id = '{id}'");
    assert_eq!(world.db.value::<String>(&one).await, "INC0012345");
    let plan = world.db.explain(&one).await;
    let read = ["task_0", "task_4", "task_8"].iter().filter(|piece| plan.contains(**piece)).count();
    assert_eq!(read, 1, "the others are pruned: {plan}");

    world
        .db
        .run(&format!("UPDATE task_all SET short_description = 'in a piece' WHERE sys_id = '{id}'"))
        .await;
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("in a piece"));
    let insert =
        "INSERT INTO task_all (short_description) SELECT 'made in pieces' FROM generate_series(1, 60)";
    world.db.run(insert).await;
    let made = world.sim.edit().find("task", "short_description=made in pieces").expect("a query");
    assert_eq!(made.len(), 60);
    let where_ = "SELECT count(DISTINCT tableoid) FROM task_all WHERE short_description = 'made in pieces'";
    assert_eq!(world.db.value::<i64>(where_).await, 3, "each has gone to its piece");
    world.db.run("DELETE FROM task_all WHERE short_description = 'made in pieces'").await;
    assert!(world.sim.edit().find("task", "short_description=made in pieces").expect("a query").is_empty());
    world.sim.edit().update("incident", &id, &[("short_description", "over there")]).expect("it is there");
    world.until("SELECT count(*) = 1 FROM task_all WHERE short_description = 'over there'").await;
}
