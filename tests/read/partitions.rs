//! A foreign table below a local one: as a partition, and as a child.

use crate::with_copies;

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_table_is_a_partition_like_any_other() {
    let world = with_copies().await;
    world
        .db
        .run(
            "CREATE TABLE ticket (sys_id text NOT NULL, number text, state bigint, priority bigint, active boolean,
                                  assigned_to text, opened_at timestamptz, source text NOT NULL) PARTITION BY LIST (source);
             CREATE TABLE local_ticket PARTITION OF ticket FOR VALUES IN ('local');
             CREATE FOREIGN TABLE now_ticket (number text, source text OPTIONS (field 'sys_class_name') NOT NULL,
                 sys_id text NOT NULL, state bigint, opened_at timestamptz, priority bigint, active boolean,
                 assigned_to text) SERVER acme OPTIONS (\"table\" 'problem');
             SELECT servicenow.start_worker()",
        )
        .await;
    world.sync("now_ticket").await;
    world
        .db
        .run(
            "ALTER TABLE ticket ATTACH PARTITION now_ticket FOR VALUES IN ('problem');
             INSERT INTO local_ticket VALUES ('x', 'T1', 1, 1, true, NULL, now(), 'local'), ('y', 'T2', 2, 3, false, NULL, now(), 'local')",
        )
        .await;
    let problems = world.db.value::<i64>("SELECT count(*) FROM problem").await;
    assert!(problems > 3);
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM ticket").await, problems + 2);
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM ticket WHERE source = 'problem'").await, problems);
    let plan = world.db.explain("SELECT * FROM ticket WHERE source = 'local'").await;
    assert!(!plan.contains("now_ticket"), "it is pruned: {plan}");
    // Columns are matched by name.
    let like = "SELECT bool_and((t.number, t.state, t.priority, t.assigned_to) IS NOT DISTINCT FROM (p.number, p.state, p.priority, p.assigned_to))
                FROM ticket t JOIN problem p USING (sys_id)";
    assert!(world.db.value::<bool>(like).await);
    let by = "SELECT string_agg(DISTINCT tableoid::regclass::text, ',' ORDER BY tableoid::regclass::text) FROM ticket";
    assert_eq!(world.db.value::<String>(by).await, "local_ticket,now_ticket");
    // A join partition by partition, too.
    world
        .db
        .run(
            "CREATE TABLE other (id text, source text NOT NULL) PARTITION BY LIST (source);
             CREATE TABLE local_other PARTITION OF other FOR VALUES IN ('local');
             CREATE TABLE now_other PARTITION OF other FOR VALUES IN ('problem');
             INSERT INTO other SELECT sys_id, source FROM ticket",
        )
        .await;
    let joined = "SELECT count(number) FROM other o JOIN ticket t ON t.sys_id = o.id AND t.source = o.source";
    for setting in
        ["enable_seqscan = on", "enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off"]
    {
        world.db.run(&format!("SET enable_partitionwise_join = on; SET {setting}")).await;
        assert_eq!(world.db.value::<i64>(joined).await, problems + 2, "{setting}");
    }
    // A join looks rows of every partition up by their key.
    world.db.run("SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off").await;
    world
        .db
        .run("CREATE INDEX ON local_ticket (sys_id); CREATE TABLE list AS SELECT sys_id FROM ticket")
        .await;
    let plan = world.db.explain("SELECT number FROM list JOIN ticket USING (sys_id)").await;
    assert!(plan.contains("Index Cond: (sys_id = list.sys_id)"), "{plan}");
    assert_eq!(
        world.db.value::<i64>("SELECT count(number) FROM list JOIN ticket USING (sys_id)").await,
        problems + 2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_through_the_parent_reach_the_instance() {
    let world = with_copies().await;
    world
        .db
        .run(
            "CREATE TABLE ticket (sys_id text, number text, priority bigint, short_description text,
                                  sys_class_name text NOT NULL) PARTITION BY LIST (sys_class_name);
             CREATE TABLE local_ticket PARTITION OF ticket FOR VALUES IN ('local');
             CREATE FOREIGN TABLE now_ticket PARTITION OF ticket FOR VALUES IN ('problem')
                 SERVER acme OPTIONS (\"table\" 'problem');
             INSERT INTO local_ticket VALUES ('x', 'T1', 1, 'here', 'local');
             SELECT servicenow.start_worker()",
        )
        .await;
    world.sync("now_ticket").await;
    world.db.run("UPDATE ticket SET short_description = 'through the parent'").await;
    let known = world.db.rows("SELECT sys_id FROM now_ticket").await;
    for row in &known {
        assert_eq!(
            world.remote("problem", row.get(0), "short_description").as_deref(),
            Some("through the parent")
        );
    }
    // A cursor on the parent, or on the partition, stands on a row of one of the partitions.
    for (from, lock) in [("ticket", ""), ("ticket", "FOR UPDATE"), ("now_ticket", "FOR UPDATE")] {
        let text = format!("cursor on {from} {lock}");
        world
            .db
            .run(&format!(
                "BEGIN; DECLARE c CURSOR FOR SELECT * FROM {from} WHERE number LIKE 'PRB%' {lock}; MOVE c;
                 UPDATE {from} SET short_description = '{text}' WHERE CURRENT OF c; COMMIT"
            ))
            .await;
        let changed = format!("SELECT count(*) FROM ticket WHERE short_description = '{text}'");
        assert_eq!(world.db.value::<i64>(&changed).await, 1, "{text}");
        let there = world.sim.edit().find("problem", &format!("short_description={text}"));
        assert_eq!(there.expect("a query").len(), 1, "{text}");
    }
    world
        .db
        .run(
            "BEGIN; DECLARE c CURSOR FOR SELECT * FROM ticket WHERE sys_id = 'x'; MOVE c;
             UPDATE ticket SET short_description = 'local' WHERE CURRENT OF c; COMMIT",
        )
        .await;
    let changed = "SELECT string_agg(sys_id, ',') FROM ticket WHERE short_description = 'local'";
    assert_eq!(world.db.value::<String>(changed).await, "x");
    let first: &str = known[0].get(0);
    world.db.run(&format!("DELETE FROM ticket WHERE sys_id = '{first}'")).await;
    assert!(world.sim.record("problem", first).is_none());
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM ticket").await, known.len() as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_table_inherits() {
    let world = with_copies().await;
    world
        .db
        .run(
            "CREATE TABLE task (priority bigint, sys_id text, number text);
             INSERT INTO task VALUES (1, 'x', 'LOCAL1');
             CREATE FOREIGN TABLE problem_task (state bigint) INHERITS (task) SERVER acme OPTIONS (\"table\" 'problem');
             SELECT servicenow.start_worker()",
        )
        .await;
    world.sync("problem_task").await;
    let problems = world.db.value::<i64>("SELECT count(*) FROM problem").await;
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM task").await, problems + 1);
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM ONLY task").await, 1);
    let alike = "SELECT bool_and(t.number = p.number AND t.priority IS NOT DISTINCT FROM p.priority)
                 FROM task t JOIN problem p USING (sys_id)";
    assert!(world.db.value::<bool>(alike).await);
    let whole = "SELECT count(*) FROM task t WHERE (t).number LIKE 'PRB%' AND t IS NOT NULL";
    assert!(world.db.value::<i64>(whole).await > 0);
    // A column added to the parent is there too, and is filled.
    world.db.run("ALTER TABLE task ADD COLUMN short_description text").await;
    world.sync("problem_task").await;
    assert!(world.db.value::<i64>("SELECT count(short_description) FROM task").await > 0);
}
