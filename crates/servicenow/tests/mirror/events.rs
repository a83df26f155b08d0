//! A model check of the reader of events: with events that come twice, in any order, or, where polls go on, not at all;
//! and with the reader killed between any two steps, the store becomes like the instance, and the queue empty.
//!
//! `EVENTS_MODEL_SEED` repeats a case (see [`crate::cases`]).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use servicenow::capture::event::Operation;
use servicenow::capture::inbox::Inbox;
use servicenow::capture::{Subscription, SubscriptionId, Way};
use servicenow::client::auth::Secret;
use servicenow::sync::capture::{Capture, CaptureStore, Channel, Rules, Setup, run};
use servicenow::sync::mirror::Spec;
use servicenow::sync::pace::Brake;
use servicenow::value::TableName;
use servicenow_sim::{Effect, Fault};
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::cases::check;
use crate::direct::Direct;
use crate::faults::all_effects;
use crate::interrupt::at_most;
use crate::keeper::Keeper;
use crate::{INTEGRATION, TASK_FIELDS, World, client, client_within, fill, poll};

/// How long to go on with new cases.
const BUDGET: Duration = Duration::from_secs(8);
/// Looks until everything must have been settled, and the pause between two.
const LOOKS: u32 = 600;
const PAUSE: Duration = Duration::from_millis(5);

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Insert(u8),
    InsertAgain(usize),
    Update(usize, u8),
    Delete(usize),
    SomebodyWrites(usize),
    NobodyWrites,
    /// An event in the queue is there twice.
    Doubles(usize),
    /// An event says another time than it should, by which it comes earlier or later.
    Moves(usize, usize),
    /// An event is lost.
    IsLost(usize),
    Fails {
        effect: usize,
        after: u64,
        times: u64,
    },
    Looks,
    /// The reader is killed in the middle of a look, or while it looks records up.
    LooksAndDies {
        polls: usize,
        later: usize,
    },
}

fn steps(may_lose: bool) -> impl Strategy<Value = Vec<Step>> {
    let row = 0usize..1_000;
    let step = prop_oneof![
        2 => any::<u8>().prop_map(Step::Insert),
        2 => row.clone().prop_map(Step::InsertAgain),
        6 => (row.clone(), any::<u8>()).prop_map(|(row, n)| Step::Update(row, n)),
        3 => row.clone().prop_map(Step::Delete),
        1 => row.clone().prop_map(Step::SomebodyWrites),
        1 => Just(Step::NobodyWrites),
        2 => row.clone().prop_map(Step::Doubles),
        2 => (row.clone(), row.clone()).prop_map(|(one, other)| Step::Moves(one, other)),
        2 => row.clone().prop_map(move |row| if may_lose { Step::IsLost(row) } else { Step::Doubles(row) }),
        2 => (0usize..100, 0u64..4, 1u64..3)
            .prop_map(|(effect, after, times)| Step::Fails { effect, after, times }),
        3 => Just(Step::Looks),
        5 => (0usize..60, 0usize..60).prop_map(|(polls, later)| Step::LooksAndDies { polls, later }),
    ];
    prop::collection::vec(step, 1..60)
}

/// What is mirrored, and how it is told of.
#[derive(Clone, Debug)]
struct Setting {
    is_webhook: bool,
    /// Events may be lost; then polls have to find what they told of.
    may_lose: bool,
}

fn cases() -> impl Strategy<Value = (Setting, Vec<Step>)> {
    (any::<bool>(), any::<bool>())
        .prop_flat_map(|(is_webhook, may_lose)| (Just(Setting { is_webhook, may_lose }), steps(may_lose)))
}

/// A case under way.
struct Case {
    world: World,
    id: SubscriptionId,
    queue: TableName,
    /// What was posted, with a webhook; it outlives a reader.
    inbox: Option<Arc<Inbox>>,
    reader: Capture<Direct, Keeper>,
    /// Records that were deleted.
    gone: Vec<String>,
}

impl Case {
    async fn new(setting: &Setting) -> Case {
        let mut world = World::new("incident", TASK_FIELDS).await;
        world.sim.edit().grant_role(INTEGRATION, "admin").expect("a role");
        world.client = client(&world.sim, INTEGRATION, 1);
        world.filled().await;
        let id = SubscriptionId::of(&["model"]);
        let queue = world.client.make_queue(&id).await.expect("a queue");
        let rules = Subscription { id: id.clone(), way: Way::Queue(queue.clone()) };
        world.client.make_rule(&rules, &world.spec.table).await.expect("a rule");
        let given = BTreeSet::from([world.spec.table.clone()]);
        world.store.note_rules(Rules { given, leaving: false }).await.expect("nobody stops it");
        let inbox = setting.is_webhook.then(Arc::<Inbox>::default);
        let reader = reader(&world, &id, &queue, inbox.as_ref(), [world.spec.clone()]);
        Case { world, id, queue, inbox, reader, gone: Vec::new() }
    }

    fn pick(&self, table: &str, row: usize) -> Option<String> {
        let ids = self.world.sim.edit().find(table, "ORDERBYsys_id").expect("a query");
        (!ids.is_empty()).then(|| ids[row % ids.len()].clone())
    }

    async fn happens(&mut self, step: &Step) {
        let (edit, queue) = (self.world.sim.edit(), self.queue.as_str().to_owned());
        match *step {
            Step::Insert(n) => {
                let text = format!("new {n}");
                edit.insert("incident", &[("short_description", &text)]).expect("a record");
            }
            Step::InsertAgain(n) => {
                if !self.gone.is_empty() {
                    let id = self.gone.swap_remove(n % self.gone.len());
                    edit.insert("incident", &[("sys_id", &id), ("short_description", "again")])
                        .expect("a record");
                }
            }
            Step::Update(row, n) => {
                if let Some(id) = self.pick("incident", row) {
                    let text = format!("text {n}");
                    edit.update("incident", &id, &[("short_description", &text)]).expect("it is there");
                }
            }
            Step::Delete(row) => {
                if let Some(id) = self.pick("incident", row) {
                    edit.delete("incident", &id).expect("it is there");
                    self.gone.push(id);
                }
            }
            Step::SomebodyWrites(row) => {
                if let Some(id) = self.pick("incident", row) {
                    self.world.store.hold(&id);
                }
            }
            Step::NobodyWrites => self.world.store.let_go(),
            Step::Doubles(row) => {
                if let Some(id) = self.pick(&queue, row) {
                    let mut again = self.world.sim.record(&queue, &id).expect("it is there");
                    again.retain(|field, _| field.starts_with("u_"));
                    let fields: Vec<(&str, &str)> =
                        again.iter().map(|(field, value)| (field.as_str(), value.as_str())).collect();
                    edit.insert(&queue, &fields).expect("a row");
                }
            }
            Step::Moves(one, other) => {
                if let (Some(one), Some(other)) = (self.pick(&queue, one), self.pick(&queue, other)) {
                    // Rows come in the order of this column; what they tell apart from it stays.
                    let at = |id: &str| {
                        self.world.sim.record(&queue, id).expect("it is there")["u_sequence"].clone()
                    };
                    let (first, second) = (at(&one), at(&other));
                    edit.update(&queue, &one, &[("u_sequence", &second)]).expect("it is there");
                    edit.update(&queue, &other, &[("u_sequence", &first)]).expect("it is there");
                }
            }
            Step::IsLost(row) => {
                if let Some(id) = self.pick(&queue, row) {
                    edit.delete(&queue, &id).expect("it is there");
                }
            }
            Step::Fails { effect, after, times } => {
                let effects = all_effects();
                let effect: Effect = effects[effect % effects.len()].clone();
                self.world.sim.fault(Fault::new(effect).after(after).times(times));
            }
            Step::Looks => {
                self.deliver().await;
                let _failed = self.reader.look().await;
            }
            Step::LooksAndDies { polls, later } => {
                self.deliver().await;
                let _dropped = at_most(self.reader.look(), polls).await;
                for _ in 0..later {
                    yield_now().await;
                }
                self.begin_anew();
            }
        }
    }

    /// With a webhook the rules' events come by themselves: what the queue has is posted.
    async fn deliver(&self) {
        let Some(inbox) = &self.inbox else { return };
        let mut posted = Vec::new();
        for id in self.world.sim.edit().find(self.queue.as_str(), "ORDERBYu_sequence").expect("a query") {
            let row = self.world.sim.record(self.queue.as_str(), &id).expect("it is there");
            posted.push(servicenow::capture::event::Event {
                table: TableName::new(&row["u_table"]).expect("a name"),
                id: servicenow::value::SysId::new(row["u_record"].as_str()),
                operation: Operation::parse(&row["u_operation"]),
                version: servicenow::page::Version {
                    updated_on: servicenow::value::decode_seconds(&row["u_updated_on"]),
                    mod_count: row["u_mod_count"].parse().ok(),
                },
                at: row["u_sequence"].parse().unwrap_or_default(),
            });
            self.world.sim.edit().delete(self.queue.as_str(), &id).expect("it is there");
        }
        for event in posted {
            assert!(inbox.offer(event), "there is room");
        }
    }

    fn begin_anew(&mut self) {
        let specs = [self.world.spec.clone()];
        self.reader = reader(&self.world, &self.id, &self.queue, self.inbox.as_ref(), specs);
    }

    /// The number of rules on the table.
    fn rules(&self) -> usize {
        self.world.sim.edit().find("sys_script", &format!("name={}", self.id.name())).expect("a query").len()
    }

    async fn ends(&mut self, setting: &Setting) {
        self.world.sim.clear_faults();
        self.world.store.let_go();
        self.begin_anew();
        let mut looks = 0;
        loop {
            self.deliver().await;
            self.reader.look().await.expect("nothing fails any more");
            let left = self.world.sim.edit().find(self.queue.as_str(), "").expect("a query").len();
            if left == 0 && self.world.store.is_settled() {
                break;
            }
            looks += 1;
            assert!(looks < LOOKS, "{left} events are left");
            sleep(PAUSE).await;
        }
        assert_eq!(self.world.sim.script_errors(), Vec::<String>::new());
        if setting.may_lose {
            let mut mirror = self.world.mirror();
            fill(&mut mirror).await.expect("it is there");
            self.world.read_deletes().await;
            poll(&mut mirror).await;
        }
        self.world.assert_alike();
    }
}

/// A reader that goes on from where the store is: the first one, or the next after a crash.
fn reader(
    world: &World,
    id: &SubscriptionId,
    queue: &TableName,
    inbox: Option<&Arc<Inbox>>,
    specs: impl IntoIterator<Item = Spec>,
) -> Capture<Direct, Keeper> {
    let channel = match inbox {
        None => Channel::Queue(Some(queue.clone())),
        Some(inbox) => Channel::Webhook {
            inbox: inbox.clone(),
            endpoint: "http://127.0.0.1/".parse().expect("an address"),
            key: Secret::new("a key"),
        },
    };
    let setup = Setup {
        id: id.clone(),
        channel,
        // With a webhook that is only played nobody makes or changes rules.
        installed: inbox.is_none(),
        rules: world.store.rules(),
        poll_interval: Duration::from_secs(10),
    };
    let specs = HashMap::from_iter(specs.into_iter().map(|spec| ((), spec)));
    Capture::new(world.client.clone(), world.store.clone(), specs, setup, Arc::<Brake>::default())
}

#[test]
fn events_in_any_order_and_number_and_readers_that_die_leave_the_store_like_the_instance() {
    check("EVENTS_MODEL_SEED", BUDGET, cases, async |(setting, steps)| {
        let mut case = Case::new(&setting).await;
        for step in &steps {
            case.happens(step).await;
        }
        case.ends(&setting).await;
    });
}

#[tokio::test(start_paused = true)]
async fn a_table_that_leaves_and_comes_back_has_a_rule_wherever_the_reader_was_interrupted() {
    let mut case = Case::new(&Setting { is_webhook: false, may_lose: false }).await;
    for polls in 1.. {
        let mut without = reader(&case.world, &case.id, &case.queue, None, []);
        let ended = at_most(without.look(), polls).await.is_some();
        drop(without);
        case.begin_anew();
        case.reader.look().await.expect("nothing fails");
        assert_eq!(case.rules(), 1, "interrupted at {polls}");
        if ended {
            break;
        }
    }
}

/// Looks into a queue are frequent after there was something in it, and rare while there is nothing.
#[tokio::test(start_paused = true)]
async fn a_queue_is_looked_into_often_after_events_and_seldom_while_nothing_happens() {
    let Case { world, queue, reader, .. } = Case::new(&Setting { is_webhook: false, may_lose: false }).await;
    let _reading = tokio::spawn(run(reader));
    let looks = || {
        let calls = world.sim.requests();
        calls
            .iter()
            .filter(|call| call.method == "GET" && call.table.as_deref() == Some(queue.as_str()))
            .count()
    };
    sleep(Duration::from_secs(60)).await;
    let before = looks();
    sleep(Duration::from_secs(20)).await;
    let idle = looks() - before;
    assert!((9..=11).contains(&idle), "{idle} looks in 20 s");
    let edit = world.sim.edit();
    let id = edit.find("incident", "ORDERBYsys_id").expect("a query").swap_remove(0);
    edit.update("incident", &id, &[("short_description", "told")]).expect("it is there");
    let events = || edit.find(queue.as_str(), "").expect("a query").len();
    assert_eq!(events(), 1);
    let began = tokio::time::Instant::now();
    while events() > 0 {
        assert!(began.elapsed() < Duration::from_secs(3), "nobody looks");
        sleep(Duration::from_millis(10)).await;
    }
    let before = looks();
    sleep(Duration::from_millis(1_500)).await;
    let quick = looks() - before;
    assert!(quick >= 3, "{quick} looks in 1.5 s");
}

/// The rules are looked at together with other things: where that takes long, events do not wait for it.
#[tokio::test(start_paused = true)]
async fn a_batch_api_that_does_not_answer_holds_no_event_up() {
    let mut case = Case::new(&Setting { is_webhook: false, may_lose: false }).await;
    case.world.client = client_within(&case.world.sim, INTEGRATION, 3, Duration::from_secs(30));
    case.begin_anew();
    case.world.sim.fault(Fault::new(Effect::Hang).path("/v1/batch"));
    let id = case.pick("incident", 0).expect("a record");
    case.world.sim.edit().update("incident", &id, &[("short_description", "told")]).expect("it is there");
    let began = tokio::time::Instant::now();
    case.reader.look().await.expect("only batches hang");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(case.world.sim.edit().find(case.queue.as_str(), "").expect("a query").len(), 0);
}

/// A table may tell of changes before it was noted that its rule was made.
#[tokio::test(start_paused = true)]
async fn a_rule_made_from_here_is_not_taken_for_made_because_its_table_tells() {
    let mut case = Case::new(&Setting { is_webhook: false, may_lose: false }).await;
    case.world.store.note_rules(Rules::default()).await.expect("nobody stops it");
    for rule in
        case.world.sim.edit().find("sys_script", &format!("name={}", case.id.name())).expect("a query")
    {
        let id = case.pick("incident", 0).expect("a record");
        case.world.sim.edit().update("incident", &id, &[("short_description", "told")]).expect("it is there");
        case.world.sim.edit().delete("sys_script", &rule).expect("it is there");
    }
    // The look at the rules fails, the events are read.
    case.world.sim.fault(Fault::new(Effect::Status { status: 503, html: false }).table("sys_script"));
    case.begin_anew();
    case.reader.look().await.expect("events come all the same");
    case.world.sim.clear_faults();
    case.begin_anew();
    case.reader.look().await.expect("nothing fails");
    assert_eq!(case.rules(), 1);
}
