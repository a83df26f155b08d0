use proptest::prelude::*;

use super::*;
use crate::push::intent::Intent;

const TABLE: &str = "incident";
const FIELDS: [&str; 3] = ["a", "b", "c"];

fn version(mod_count: i64) -> Version {
    Version { updated_on: Some(1_000 + mod_count), mod_count: Some(mod_count) }
}

fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect()
}

fn seen(mod_count: i64, pairs: &[(&str, &str)]) -> Seen {
    Seen { version: version(mod_count), fields: fields(pairs) }
}

fn write(op: Op, images: Images, answered: Option<Version>) -> OpenWrite {
    let intent = Intent {
        server: 1,
        foreign_table: 2,
        role: 3,
        table: TableName::new(TABLE).unwrap(),
        sys_id: SysId::new("x"),
        op,
        xid: 7,
        timeline: 1,
        undo: Some(images),
    };
    OpenWrite { intent, answered }
}

fn update(of: i64, before: &[(&str, &str)], after: &[(&str, &str)], answered: Option<i64>) -> OpenWrite {
    let images = Images { version: version(of), before: fields(before), after: fields(after) };
    write(Op::Update, images, answered.map(version))
}

fn insert(is_fresh: bool, answered: Option<i64>) -> OpenWrite {
    write(Op::Insert { is_fresh, is_findable: true }, Images::default(), answered.map(version))
}

fn delete(of: i64, before: &[(&str, &str)], answered: bool) -> OpenWrite {
    let images = Images { version: version(of), before: fields(before), after: Fields::new() };
    write(Op::Delete, images, answered.then(Version::default))
}

fn decided(writes: &[OpenWrite], now: Option<Seen>) -> Decision {
    decide(&chains(writes)[0], now.as_ref(), Calls::AreOver)
}

fn action(writes: &[OpenWrite], now: Option<Seen>) -> Action {
    decided(writes, now).action
}

#[test]
fn a_change_is_taken_back_if_nobody_changed_the_record_since() {
    let writes = [update(4, &[("a", "1"), ("b", "1")], &[("a", "2"), ("b", "1")], Some(5))];
    let restore = Action::Restore(fields(&[("a", "1")]));
    assert_eq!(action(&writes, Some(seen(5, &[("a", "2"), ("b", "1")]))), restore);
    assert_eq!(action(&writes, Some(seen(6, &[("a", "2"), ("b", "1")]))), Action::Leave(Why::Changed));
    assert_eq!(action(&writes, Some(seen(9, &[("a", "1"), ("b", "1")]))), Action::Nothing, "undone before");
    assert_eq!(action(&writes, None), Action::Leave(Why::Gone));
}

#[test]
fn a_value_that_the_instance_has_changed_is_taken_back_too() {
    let writes = [update(4, &[("a", "x")], &[("a", " y ")], Some(5))];
    let restore = Action::Restore(fields(&[("a", "x")]));
    assert_eq!(action(&writes, Some(seen(5, &[("a", "y")]))), restore);
}

#[test]
fn a_record_that_would_not_be_found_is_not_said_to_be_undone() {
    let op = Op::Insert { is_fresh: true, is_findable: false };
    let lost = [write(op, Images::default(), None)];
    assert_eq!(action(&lost, None), Action::Leave(Why::MaybeMade));
    assert_eq!(action(&lost, Some(seen(0, &[]))), Action::Remove);
    let answered = [write(op, Images::default(), Some(version(0)))];
    assert_eq!(action(&answered, None), Action::Nothing, "it was made and is gone");
    let early = decide(&chains(&lost)[0], None, Calls::MayArrive).action;
    assert_eq!(early, Action::Wait);
}

#[test]
fn changes_are_taken_back_in_one_step() {
    let writes = [
        update(4, &[("a", "1")], &[("a", "2")], Some(5)),
        update(5, &[("a", "2"), ("b", "1")], &[("a", "3"), ("b", "2")], Some(6)),
    ];
    let restore = Action::Restore(fields(&[("a", "1"), ("b", "1")]));
    assert_eq!(action(&writes, Some(seen(6, &[("a", "3"), ("b", "2")]))), restore);
    assert_eq!(action(&writes, Some(seen(5, &[("a", "2"), ("b", "1")]))), Action::Leave(Why::Changed));
}

#[test]
fn a_change_that_overwrote_an_unknown_one_is_left() {
    let writes = [update(4, &[("a", "1")], &[("a", "3")], Some(6))];
    assert_eq!(action(&writes, Some(seen(6, &[("a", "3")]))), Action::Leave(Why::Changed));
    let between =
        [update(4, &[("a", "1")], &[("a", "2")], Some(5)), update(6, &[("a", "9")], &[("a", "3")], Some(7))];
    assert_eq!(action(&between, Some(seen(7, &[("a", "3")]))), Action::Leave(Why::Changed));
}

#[test]
fn a_rolled_back_savepoint_leaves_images_of_an_earlier_version() {
    let writes =
        [update(4, &[("a", "1")], &[("a", "2")], Some(5)), update(4, &[("b", "1")], &[("b", "2")], Some(6))];
    let restore = Action::Restore(fields(&[("a", "1"), ("b", "1")]));
    assert_eq!(action(&writes, Some(seen(6, &[("a", "2"), ("b", "2")]))), restore);
}

#[test]
fn what_may_still_arrive_is_waited_for() {
    let early = |writes: &[OpenWrite], now: Option<Seen>| {
        decide(&chains(writes)[0], now.as_ref(), Calls::MayArrive).action
    };
    let change = [update(4, &[("a", "1")], &[("a", "2")], None)];
    assert_eq!(early(&change, Some(seen(4, &[("a", "1")]))), Action::Wait);
    assert_eq!(early(&change, Some(seen(5, &[("a", "2")]))), Action::Restore(fields(&[("a", "1")])));
    assert_eq!(early(&change, Some(seen(6, &[("a", "1")]))), Action::Wait, "perhaps it was undone before");
    let after_another =
        [update(4, &[("a", "1")], &[("a", "2")], Some(5)), update(5, &[("b", "1")], &[("b", "2")], None)];
    assert_eq!(early(&after_another, Some(seen(5, &[("a", "2"), ("b", "1")]))), Action::Wait);
    assert_eq!(early(&[insert(true, None)], None), Action::Wait);
    assert_eq!(early(&[insert(true, Some(0))], Some(seen(0, &[]))), Action::Remove, "it was answered");
}

#[test]
fn whether_a_change_without_an_answer_happened_is_seen() {
    let writes = [update(4, &[("a", "1"), ("b", "1")], &[("a", "2"), ("b", "1")], None)];
    let restore = Action::Restore(fields(&[("a", "1")]));
    assert_eq!(action(&writes, Some(seen(5, &[("a", "2"), ("b", "1")]))), restore, "it did");
    assert_eq!(action(&writes, Some(seen(4, &[("a", "1"), ("b", "1")]))), Action::Nothing, "it did not");
    for other in
        [seen(5, &[("a", "2"), ("b", "3")]), seen(6, &[("a", "2"), ("b", "1")]), seen(5, &[("b", "1")])]
    {
        assert_eq!(action(&writes, Some(other)), Action::Leave(Why::Unclear));
    }
    let nothing_new =
        [update(4, &[("a", "1")], &[("a", "2")], Some(5)), update(5, &[("b", "1")], &[("b", "1")], None)];
    assert_eq!(
        action(&nothing_new, Some(seen(6, &[("a", "2"), ("b", "1")]))),
        Action::Leave(Why::Unclear),
        "somebody else changed something"
    );
}

#[test]
fn after_a_change_without_an_answer_nothing_is_sure_but_that_all_is_as_before() {
    let writes =
        [update(4, &[("a", "1")], &[("a", "2")], None), update(4, &[("b", "1")], &[("b", "2")], Some(5))];
    assert_eq!(action(&writes, Some(seen(5, &[("a", "1"), ("b", "2")]))), Action::Leave(Why::Unclear));
    assert_eq!(action(&writes, Some(seen(7, &[("a", "1"), ("b", "1")]))), Action::Nothing);
}

#[test]
fn a_made_record_is_deleted_if_nobody_changed_it() {
    let writes = [insert(true, Some(0)), update(0, &[("a", "1")], &[("a", "2")], Some(1))];
    assert_eq!(action(&writes, Some(seen(1, &[("a", "2")]))), Action::Remove);
    assert_eq!(action(&writes, Some(seen(2, &[("a", "2")]))), Action::Leave(Why::Changed));
    assert_eq!(action(&writes, None), Action::Nothing);
}

#[test]
fn whether_a_record_was_made_without_an_answer_is_seen_if_its_identity_is_fresh() {
    assert_eq!(action(&[insert(true, None)], Some(seen(0, &[]))), Action::Remove);
    assert_eq!(action(&[insert(true, None)], Some(seen(1, &[]))), Action::Leave(Why::Unclear));
    assert_eq!(action(&[insert(true, None)], None), Action::Nothing);
    assert_eq!(
        action(&[insert(false, None)], Some(seen(0, &[]))),
        Action::Leave(Why::Unclear),
        "may be another"
    );
}

#[test]
fn a_deleted_record_is_made_again_as_it_was_first() {
    let image = [
        ("a", "2"),
        ("b", "1"),
        ("sys_class_name", TABLE),
        ("sys_created_by", "me"),
        ("sys_updated_by", "you"),
        ("sys_mod_count", "5"),
        ("sys_id", "x"),
    ];
    let writes = [update(4, &[("a", "1")], &[("a", "2")], Some(5)), delete(5, &image, true)];
    let made = fields(&[("a", "1"), ("b", "1"), ("sys_class_name", TABLE)]);
    let create = Action::Create {
        table: TableName::new(TABLE).unwrap(),
        fields: made,
        maker: fields(&[("sys_created_by", "me")]),
    };
    assert_eq!(action(&writes, None), create);
    let again = [("a", "1"), ("b", "1"), ("sys_class_name", TABLE), ("sys_updated_by", "me")];
    assert_eq!(action(&writes, Some(seen(0, &again))), Action::Nothing, "made again before");
    assert_eq!(
        action(&writes, Some(seen(0, &[("a", "9"), ("b", "1"), ("sys_class_name", TABLE)]))),
        Action::Leave(Why::Changed)
    );
}

#[test]
fn a_deletion_without_an_answer_happened_if_the_record_is_gone() {
    let image = [("a", "1"), ("sys_class_name", TABLE)];
    let writes = [delete(4, &image, false)];
    assert!(matches!(action(&writes, None), Action::Create { .. }));
    assert_eq!(action(&writes, Some(seen(4, &image))), Action::Nothing);
    assert_eq!(
        action(&writes, Some(seen(5, &[("a", "3"), ("sys_class_name", TABLE)]))),
        Action::Leave(Why::Unclear)
    );
}

#[test]
fn a_record_that_was_made_and_deleted_leaves_nothing_to_do() {
    let writes = [insert(true, Some(0)), delete(0, &[("a", "1")], true)];
    assert_eq!(action(&writes, None), Action::Nothing);
    assert_eq!(action(&writes, Some(seen(0, &[("a", "1")]))), Action::Leave(Why::Changed));
    let unanswered = [insert(true, Some(0)), delete(0, &[("a", "1")], false)];
    assert_eq!(action(&unanswered, Some(seen(0, &[("a", "1")]))), Action::Remove);
}

#[test]
fn a_record_that_was_replaced_gets_its_values_back() {
    let writes = [delete(4, &[("a", "1"), ("b", "1"), ("sys_mod_count", "4")], true), insert(false, Some(0))];
    let restore = Action::Restore(fields(&[("a", "1"), ("b", "1")]));
    assert_eq!(action(&writes, Some(seen(0, &[("a", "2"), ("b", "")]))), restore);
}

#[test]
fn entries_of_journals_stay() {
    let sent = [("a", "2"), ("comments", "text")];
    let stays = Some(Why::Partly(vec!["comments".to_owned()]));
    let answered = [update(4, &[("a", "1")], &sent, Some(5))];
    assert_eq!(decided(&answered, Some(seen(5, &[("a", "2")]))).stays, stays);
    assert_eq!(decided(&answered, Some(seen(6, &[("a", "1")]))), Decision { action: Action::Nothing, stays });
    let unknown = [update(4, &[], &[("comments", "text")], None)];
    assert_eq!(decided(&unknown, Some(seen(4, &[]))).stays, None);
    assert!(decided(&unknown, Some(seen(5, &[]))).stays.is_some(), "there may be one");
}

#[test]
fn a_record_of_a_child_table_comes_back_in_part() {
    let class = TableName::new("problem").unwrap();
    let Decision { action, stays } =
        decided(&[delete(4, &[("a", "1"), ("sys_class_name", "problem")], true)], None);
    assert!(matches!(action, Action::Create { table, .. } if table == class));
    assert_eq!(stays, Some(Why::OtherClass(class)));
}

#[test]
fn a_version_that_is_not_shown_proves_nothing() {
    let hidden = Version { updated_on: Some(9), mod_count: None };
    let images = Images { version: hidden, before: fields(&[("a", "1")]), after: fields(&[("a", "2")]) };
    let writes = [write(Op::Update, images, Some(hidden))];
    let now = Seen { version: hidden, fields: fields(&[("a", "2")]) };
    assert_eq!(action(&writes, Some(now)), Action::Leave(Why::Unclear));
    let unseen = Seen { version: Version::default(), fields: Fields::new() };
    assert_eq!(action(&[insert(true, Some(0))], Some(unseen)), Action::Leave(Why::Unclear));
}

#[test]
fn without_images_nothing_is_done() {
    let mut bare = update(4, &[("a", "1")], &[("a", "2")], Some(5));
    bare.intent.undo = None;
    assert_eq!(action(&[bare], Some(seen(5, &[("a", "2")]))), Action::Leave(Why::NoImage));
}

#[test]
fn records_are_undone_from_the_last_one_made_or_deleted_on() {
    let mut writes = vec![
        insert(true, Some(0)),
        insert(true, Some(0)),
        update(1, &[], &[], Some(2)),
        update(0, &[], &[], Some(1)),
        delete(7, &[], true),
        update(2, &[], &[], Some(3)),
    ];
    for (write, id) in writes.iter_mut().zip(["parent", "child", "changed", "parent", "deleted", "changed"]) {
        write.intent.sys_id = SysId::new(id);
    }
    let order: Vec<_> = chains(&writes).iter().map(|chain| chain.sys_id().as_str().to_owned()).collect();
    assert_eq!(order, ["changed", "deleted", "child", "parent"]);
}

/// What happens to a record.
#[derive(Clone, Debug)]
enum Event {
    /// The transaction writes; the fate says whether it happens and whether that is known.
    Ours(Change, Fate),
    /// Somebody else writes, after the transaction has read the record and before the next write or after all.
    Theirs(Change),
}

#[derive(Clone, Debug)]
enum Change {
    Insert,
    /// Fields, and which value each gets.
    Update(Vec<(usize, u8)>),
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Answered,
    AnswerLost,
    NeverSent,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => Just(Change::Insert),
        5 => prop::collection::vec((0..FIELDS.len(), 0u8..3), 1..3).prop_map(Change::Update),
        2 => Just(Change::Delete),
    ]
}

fn events(theirs: bool) -> impl Strategy<Value = Vec<Event>> {
    let fate =
        prop_oneof![6 => Just(Fate::Answered), 1 => Just(Fate::AnswerLost), 1 => Just(Fate::NeverSent)];
    let ours = (change(), fate).prop_map(|(change, fate)| Event::Ours(change, fate)).boxed();
    let event =
        if theirs { prop_oneof![3 => ours, 1 => change().prop_map(Event::Theirs)].boxed() } else { ours };
    prop::collection::vec(event, 1..7)
}

/// A record of an instance, and what a backend notes of its writes.
#[derive(Debug, Default)]
struct Case {
    now: Option<Seen>,
    /// The record as the backend's cache has it.
    cached: Option<Seen>,
    writes: Vec<OpenWrite>,
    /// How the record was when the transaction first wrote to it.
    before: Option<Option<Seen>>,
    /// Somebody else has changed it since then, or the cache did not know of a change.
    touched: bool,
    clock: i64,
    /// A deletion has no version: it does not tell what happened before it, or who of several did it.
    blind: bool,
    /// Whether its identity was ever tried.
    is_used: bool,
}

impl Case {
    fn new(exists: bool) -> Case {
        let now = exists.then(|| seen(3, &[("a", "0"), ("b", "0"), ("c", "0")]));
        Case { cached: now.clone(), now, clock: 2_000, is_used: exists, ..Case::default() }
    }

    /// The version of a record that is changed now, some time after the last one.
    fn stamp(&mut self, mod_count: i64) -> Version {
        self.clock += 10;
        Version { updated_on: Some(self.clock), mod_count: Some(mod_count) }
    }

    /// Carries a change out, if it can be; gives back whether it could.
    fn apply(&mut self, change: &Change, mark: &str) -> bool {
        self.is_used |= matches!(change, Change::Insert);
        let next = self.now.as_ref().map_or(0, |now| now.version.mod_count.unwrap() + 1);
        let version = self.stamp(next);
        match (change, &mut self.now) {
            (Change::Insert, now @ None) => {
                let values = FIELDS.map(|field| (field.to_owned(), format!("{mark}i")));
                *now = Some(Seen { version, fields: values.into() });
            }
            (Change::Update(sent), Some(now)) => {
                let values = sent.iter().map(|&(f, n)| (FIELDS[f].to_owned(), format!("{mark}{n}")));
                let mut changed = now.fields.clone();
                changed.extend(values);
                if changed != now.fields {
                    now.fields = changed;
                    now.version = version;
                }
            }
            (Change::Delete, now @ Some(_)) => *now = None,
            _ => return false,
        }
        true
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Theirs(change) => {
                // Nobody else makes a record of an identity again: its changes would be counted from nought, and the
                // count could come to the same.
                if matches!(change, Change::Insert) && self.is_used && !self.has_deleted() {
                    return;
                }
                let happened = self.apply(change, "their");
                self.blind |= happened && matches!(change, Change::Delete) && self.has_deleted();
                self.touched = match self.before {
                    Some(_) => self.touched || happened,
                    None => self.now != self.cached,
                };
            }
            Event::Ours(change, fate) => self.write(change, *fate),
        }
    }

    fn write(&mut self, change: &Change, fate: Fate) {
        let (op, images) = match (change, &self.cached) {
            (Change::Insert, None) => {
                (Op::Insert { is_fresh: !self.is_used, is_findable: true }, Images::default())
            }
            (Change::Update(sent), Some(cached)) => {
                let after: Fields =
                    sent.iter().map(|&(f, n)| (FIELDS[f].to_owned(), format!("our{n}"))).collect();
                let before = after.keys().map(|f| (f.clone(), cached.fields[f].clone())).collect();
                (Op::Update, Images { version: cached.version, before, after })
            }
            (Change::Delete, Some(cached)) => {
                self.blind |= self.touched;
                let (version, before) = (cached.version, cached.fields.clone());
                (Op::Delete, Images { version, before, after: Fields::new() })
            }
            _ => return,
        };
        if fate != Fate::NeverSent && !self.apply(change, "our") {
            // Refused: settled at once.
            return;
        }
        self.before.get_or_insert_with(|| self.cached.clone());
        let answered = (fate == Fate::Answered)
            .then(|| self.now.as_ref().map_or_else(Version::default, |now| now.version));
        if answered.is_some() {
            self.cached = self.now.clone();
        }
        self.is_used = true;
        self.writes.push(write(op, images, answered));
    }

    fn decision(&self) -> Option<Decision> {
        (!self.writes.is_empty()).then(|| decided(&self.writes, self.now.clone()))
    }

    /// Carries a decision out.
    fn act(&mut self, action: &Action) {
        match action {
            Action::Nothing | Action::Leave(_) | Action::Wait => {}
            Action::Remove => self.now = None,
            Action::Create { fields, .. } => {
                assert!(self.now.is_none());
                self.now = Some(Seen { version: self.stamp(0), fields: fields.clone() });
            }
            Action::Restore(fields) => {
                let mut now = self.now.take().expect("there is a record");
                assert_eq!(differing(fields, &now).count(), fields.len(), "nothing is sent for nothing");
                now.fields.extend(fields.clone());
                now.version = self.stamp(now.version.mod_count.unwrap() + 1);
                self.now = Some(now);
            }
        }
    }

    fn values(record: &Option<Seen>) -> Option<&Fields> {
        record.as_ref().map(|seen| &seen.fields)
    }

    fn has_deleted(&self) -> bool {
        self.writes.iter().any(|write| write.intent.op == Op::Delete)
    }

    /// Whether the record shows what happened: only the last write has no answer, if any, and has not made a record of
    /// an identity that somebody has chosen.
    fn is_clear(&self) -> bool {
        let [before @ .., last] = &self.writes[..] else { return true };
        before.iter().all(|write| write.answered.is_some())
            && (last.answered.is_some()
                || last.intent.op != Op::Insert { is_fresh: false, is_findable: true })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn a_record_that_nobody_else_touched_is_as_before(exists in any::<bool>(), events in events(false)) {
        let mut case = Case::new(exists);
        events.iter().for_each(|event| case.happens(event));
        if let Some(decision) = case.decision() {
            case.act(&decision.action);
            prop_assert_eq!(decision.stays, None);
            if case.is_clear() {
                prop_assert!(!matches!(decision.action, Action::Leave(_)), "{:?}", decision.action);
                let before = case.before.clone().flatten();
                prop_assert_eq!(Case::values(&case.now), Case::values(&before));
            }
        }
    }

    #[test]
    fn starting_over_does_nothing_more(
        exists in any::<bool>(), events in events(true), theirs in prop::option::of(change()),
    ) {
        let mut case = Case::new(exists);
        events.iter().for_each(|event| case.happens(event));
        if let Some(decision) = case.decision() {
            case.act(&decision.action);
            if let Some(theirs) = theirs {
                case.happens(&Event::Theirs(theirs));
            }
            let again = case.decision().map(|decision| decision.action);
            if !case.blind || case.now.is_some() {
                prop_assert!(matches!(again, Some(Action::Nothing | Action::Leave(_))), "{:?}", again);
            }
        }
    }

    #[test]
    fn what_somebody_else_has_changed_is_left(exists in any::<bool>(), events in events(true)) {
        let mut case = Case::new(exists);
        events.iter().for_each(|event| case.happens(event));
        if let Some(decision) = case.decision() && case.touched && !case.blind {
            prop_assert!(
                matches!(decision.action, Action::Nothing | Action::Leave(_)), "{:?}", decision.action
            );
        }
    }
}
