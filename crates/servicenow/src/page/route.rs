//! What a row has in common with the rows before it: those of one class have the same fields in the same order, and
//! most fields hold what they held in the row before, nothing above all. Text that stands there once more is not read
//! once more.

use std::borrow::Cow;

use super::Layout;
use super::json::{Json, Result};

/// The fields of a row, as they were last met at their places in it.
#[derive(Default)]
pub(super) struct Route<'t> {
    known: Vec<Known<'t>>,
}

struct Known<'t> {
    name: Cow<'t, str>,
    target: Option<usize>,
    /// Name and value as they stood in the answer, and the length of the name's part.
    text: &'t str,
    head: usize,
    /// Where the cells of the row begin in which they stood.
    cells: usize,
    /// Whether the row has another field of that name.
    is_twice: bool,
    can_repeat: bool,
}

/// A field whose text stands there once more.
pub(super) struct Repeated {
    /// Its position among the layout's targets; `None` if nobody wants it.
    pub(super) target: Option<usize>,
    /// Where the cells of the row begin that has its values.
    pub(super) cells: usize,
}

impl<'t> Route<'t> {
    /// Passes over the field at this place of a row if it stands there as it did before.
    pub(super) fn repeated(&self, place: usize, json: &mut Json<'t>) -> Option<Repeated> {
        let known = self.known.get(place).filter(|known| known.can_repeat && json.repeats(known.text))?;
        Some(Repeated { target: known.target, cells: known.cells })
    }

    /// Reads the name of the field at this place of a row; gives back its position among the layout's targets, if
    /// somebody wants it.
    pub(super) fn name(
        &mut self,
        place: usize,
        json: &mut Json<'t>,
        layout: &Layout,
    ) -> Result<Option<usize>> {
        if let Some(known) = self.known.get(place)
            && json.repeats(&known.text[..known.head])
        {
            return Ok(known.target);
        }
        let name = json.name()?;
        match self.known.get(place) {
            Some(known) if known.name == name => Ok(known.target),
            _ => Ok(self.turn(place, name, layout)),
        }
    }

    /// From this place on the row is another one than before.
    fn turn(&mut self, place: usize, name: Cow<'t, str>, layout: &Layout) -> Option<usize> {
        self.known.truncate(place);
        let target = layout.by_name.get(name.as_ref()).copied();
        let mut is_twice = false;
        for same in self.known.iter_mut().filter(|known| target.is_some() && known.target == target) {
            (same.is_twice, is_twice) = (true, true);
            same.can_repeat = false;
        }
        self.known.push(Known { name, target, text: "", head: 0, cells: 0, is_twice, can_repeat: false });
        target
    }

    /// Takes down how the field at this place stood: its text, of which the name's part has `head` bytes, in the row
    /// whose cells begin at `cells`.
    pub(super) fn stood(&mut self, place: usize, text: &'t str, head: usize, cells: usize, layout: &Layout) {
        let Some(known) = self.known.get_mut(place) else { return };
        (known.text, known.head, known.cells) = (text, head, cells);
        // A number that begins with the same digits may go on; and what every row is known by goes elsewhere too.
        known.can_repeat = text.ends_with(['"', '}', ']'])
            && !known.is_twice
            && known.target.is_none_or(|target| layout.targets[target].stamp.is_none());
    }
}
