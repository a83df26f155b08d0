//! Single values between Postgres's datums and plain Rust.

use std::ffi::CStr;

use pgrx::{FromDatum, pg_sys};

/// Microseconds from 1970-01-01 to 2000-01-01, Postgres's own epoch.
const EPOCH_MICROS: i64 = 946_684_800 * 1_000_000;
/// Days from 1970-01-01 to 2000-01-01.
const EPOCH_DAYS: i32 = 10_957;
/// Seconds in a day.
const DAY: i64 = 86_400;

/// A value on its way into or out of a tuple. Times count from 1970-01-01 00:00:00.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar<'a> {
    /// NULL.
    Null,
    /// Text, or a value of a type that only its input function knows how to make from text.
    Text(&'a str),
    /// A truth value.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// A floating point number.
    Float(f64),
    /// A point in time, or a date and time without a zone: microseconds.
    Micros(i64),
    /// A date: days.
    Days(i32),
    /// A time of day: microseconds since midnight.
    TimeOfDay(i64),
    /// An interval: seconds.
    Seconds(i64),
}

/// A value that outlives the tuple it came from.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnedScalar {
    /// NULL.
    Null,
    /// See [`Scalar::Text`].
    Text(String),
    /// Any other value.
    Plain(Scalar<'static>),
}

impl OwnedScalar {
    /// The value, borrowed.
    pub fn borrow(&self) -> Scalar<'_> {
        match self {
            OwnedScalar::Null => Scalar::Null,
            OwnedScalar::Text(text) => Scalar::Text(text),
            OwnedScalar::Plain(scalar) => *scalar,
        }
    }
}

/// A value that does not fit its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misfit;

/// Makes datums of one column's type.
#[derive(Clone, Debug)]
pub struct DatumWriter {
    type_oid: pg_sys::Oid,
    typmod: i32,
    /// Whether text is stored as it is, without an input function.
    is_plain_text: bool,
    input: pg_sys::Oid,
    input_param: pg_sys::Oid,
}

impl DatumWriter {
    /// A writer for a type with modifier.
    pub fn new(type_oid: pg_sys::Oid, typmod: i32) -> Self {
        let (mut input, mut input_param) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        // SAFETY: raises an ERROR for a type without input function; both results are locals.
        unsafe { pg_sys::getTypeInputInfo(type_oid, &mut input, &mut input_param) };
        let is_text = type_oid == pg_sys::TEXTOID || (type_oid == pg_sys::VARCHAROID && typmod < 0);
        Self { type_oid, typmod, is_plain_text: is_text, input, input_param }
    }

    /// The type.
    pub fn type_oid(&self) -> pg_sys::Oid {
        self.type_oid
    }

    /// Whether values go through an input function, which raises an ERROR for what it does not like.
    pub fn may_refuse(&self) -> bool {
        !self.is_plain_text
    }

    /// The datum for a value, in the current memory context; `None` is NULL. A value of another family than
    /// the type's goes through the type's input function as text, whose ERROR is raised.
    #[inline]
    pub fn datum(&self, value: Scalar<'_>) -> Result<Option<pg_sys::Datum>, Misfit> {
        let datum = match (value, self.type_oid) {
            (Scalar::Null, _) => return Ok(None),
            (Scalar::Text(text), _) if self.is_plain_text => text_datum(text),
            (Scalar::Boolean(b), pg_sys::BOOLOID) => pg_sys::Datum::from(b),
            (Scalar::Integer(i), pg_sys::INT8OID) => pg_sys::Datum::from(i),
            (Scalar::Integer(i), pg_sys::INT4OID) => {
                pg_sys::Datum::from(i32::try_from(i).map_err(|_| Misfit)?)
            }
            (Scalar::Integer(i), pg_sys::INT2OID) => {
                pg_sys::Datum::from(i16::try_from(i).map_err(|_| Misfit)?)
            }
            (Scalar::Float(f), pg_sys::FLOAT8OID) => pg_sys::Datum::from(f.to_bits()),
            (Scalar::Float(f), pg_sys::FLOAT4OID) => pg_sys::Datum::from((f as f32).to_bits()),
            (Scalar::Micros(us), pg_sys::TIMESTAMPTZOID | pg_sys::TIMESTAMPOID) if self.typmod < 0 => {
                pg_sys::Datum::from(us.checked_sub(EPOCH_MICROS).ok_or(Misfit)?)
            }
            (Scalar::Days(days), pg_sys::DATEOID) => {
                pg_sys::Datum::from(days.checked_sub(EPOCH_DAYS).ok_or(Misfit)?)
            }
            (Scalar::TimeOfDay(us), pg_sys::TIMEOID) if self.typmod < 0 => pg_sys::Datum::from(us),
            (Scalar::Seconds(s), pg_sys::INTERVALOID) if self.typmod < 0 => interval_datum(s)?,
            (value, _) => self.parse(&value.to_text()),
        };
        Ok(Some(datum))
    }

    fn parse(&self, text: &str) -> pg_sys::Datum {
        let text = super::catalog::c_string(text);
        // SAFETY: the input function belongs to the type; it may raise an ERROR. C strings are not written to.
        unsafe {
            pg_sys::OidInputFunctionCall(self.input, text.as_ptr().cast_mut(), self.input_param, self.typmod)
        }
    }
}

impl Scalar<'_> {
    /// A copy that owns its text.
    pub fn to_owned(self) -> OwnedScalar {
        match self {
            Scalar::Null => OwnedScalar::Null,
            Scalar::Text(text) => OwnedScalar::Text(text.to_owned()),
            Scalar::Boolean(b) => OwnedScalar::Plain(Scalar::Boolean(b)),
            Scalar::Integer(i) => OwnedScalar::Plain(Scalar::Integer(i)),
            Scalar::Float(f) => OwnedScalar::Plain(Scalar::Float(f)),
            Scalar::Micros(us) => OwnedScalar::Plain(Scalar::Micros(us)),
            Scalar::Days(days) => OwnedScalar::Plain(Scalar::Days(days)),
            Scalar::TimeOfDay(us) => OwnedScalar::Plain(Scalar::TimeOfDay(us)),
            Scalar::Seconds(s) => OwnedScalar::Plain(Scalar::Seconds(s)),
        }
    }

    /// The value as Postgres's input functions read it.
    fn to_text(self) -> String {
        match self {
            Scalar::Null => String::new(),
            Scalar::Text(text) => text.to_owned(),
            Scalar::Boolean(b) => b.to_string(),
            Scalar::Integer(i) => i.to_string(),
            Scalar::Float(f) => f.to_string(),
            Scalar::Micros(us) => match to_output(pg_sys::TIMESTAMPOID, us - EPOCH_MICROS) {
                Some(text) => format!("{text} UTC"),
                None => String::new(),
            },
            Scalar::Days(days) => to_output(pg_sys::DATEOID, days - EPOCH_DAYS).unwrap_or_default(),
            Scalar::TimeOfDay(us) => to_output(pg_sys::TIMEOID, us).unwrap_or_default(),
            Scalar::Seconds(s) => format!("{s} seconds"),
        }
    }
}

fn to_output(type_oid: pg_sys::Oid, value: impl Into<pg_sys::Datum>) -> Option<String> {
    // SAFETY: the datum was made for the type.
    unsafe { output(value.into(), type_oid) }
}

/// A text datum in the current memory context.
fn text_datum(text: &str) -> pg_sys::Datum {
    let size = text.len() + pg_sys::VARHDRSZ;
    // SAFETY: palloc gives back `size` bytes or raises an ERROR; header and bytes are written within them.
    unsafe {
        let varlena: *mut pg_sys::varlena = pg_sys::palloc(size).cast();
        pgrx::set_varsize_4b(varlena, size as i32);
        std::ptr::copy_nonoverlapping(text.as_ptr(), varlena.cast::<u8>().add(pg_sys::VARHDRSZ), text.len());
        pg_sys::Datum::from(varlena)
    }
}

/// Days and the rest apart, as subtracting two timestamps gives them.
fn interval_datum(seconds: i64) -> Result<pg_sys::Datum, Misfit> {
    let day = i32::try_from(seconds / DAY).map_err(|_| Misfit)?;
    let interval = pg_sys::Interval { time: seconds % DAY * 1_000_000, day, month: 0 };
    // SAFETY: palloc gives back enough bytes, suitably aligned, or raises an ERROR.
    unsafe {
        let place: *mut pg_sys::Interval = pg_sys::palloc(size_of::<pg_sys::Interval>()).cast();
        place.write(interval);
        Ok(pg_sys::Datum::from(place))
    }
}

/// Reads a datum of a type.
///
/// # Safety
/// `datum` is a valid, non-NULL datum of type `type_oid`.
pub(super) unsafe fn read(datum: pg_sys::Datum, type_oid: pg_sys::Oid) -> OwnedScalar {
    // SAFETY: by contract.
    unsafe {
        match type_oid {
            pg_sys::TEXTOID | pg_sys::VARCHAROID => {
                OwnedScalar::Text(String::from_datum(datum, false).unwrap_or_default())
            }
            pg_sys::BOOLOID => OwnedScalar::Plain(Scalar::Boolean(datum.value() != 0)),
            pg_sys::INT2OID => OwnedScalar::Plain(Scalar::Integer(i64::from(datum.value() as i16))),
            pg_sys::INT4OID => OwnedScalar::Plain(Scalar::Integer(i64::from(datum.value() as i32))),
            pg_sys::INT8OID => OwnedScalar::Plain(Scalar::Integer(datum.value() as i64)),
            pg_sys::FLOAT4OID => {
                OwnedScalar::Plain(Scalar::Float(f64::from(f32::from_bits(datum.value() as u32))))
            }
            pg_sys::FLOAT8OID => OwnedScalar::Plain(Scalar::Float(f64::from_bits(datum.value() as u64))),
            pg_sys::TIMESTAMPTZOID | pg_sys::TIMESTAMPOID => {
                OwnedScalar::Plain(Scalar::Micros((datum.value() as i64).saturating_add(EPOCH_MICROS)))
            }
            pg_sys::DATEOID => {
                OwnedScalar::Plain(Scalar::Days((datum.value() as i32).saturating_add(EPOCH_DAYS)))
            }
            pg_sys::TIMEOID => OwnedScalar::Plain(Scalar::TimeOfDay(datum.value() as i64)),
            pg_sys::INTERVALOID => {
                let interval = datum.cast_mut_ptr::<pg_sys::Interval>().read();
                // A month counts as 30 days, as Postgres compares intervals.
                let days = i64::from(interval.month) * 30 + i64::from(interval.day);
                OwnedScalar::Plain(Scalar::Seconds(days * DAY + interval.time.div_euclid(1_000_000)))
            }
            _ => output(datum, type_oid).map_or(OwnedScalar::Null, OwnedScalar::Text),
        }
    }
}

/// Whether two datums of an attribute's type are stored alike, however they are compressed or moved out of line.
///
/// # Safety
/// Both are valid, non-NULL datums of the type.
pub(super) unsafe fn same_image(
    a: pg_sys::Datum,
    b: pg_sys::Datum,
    attribute: &pg_sys::FormData_pg_attribute,
) -> bool {
    // SAFETY: by contract; a type's length says how its datums are laid out.
    unsafe {
        match (attribute.attbyval, attribute.attlen) {
            (true, length) => {
                let unused = 64 - 8 * u32::from(length.clamp(1, 8).unsigned_abs());
                (a.value() as u64) << unused == (b.value() as u64) << unused
            }
            (false, length @ 1..) => {
                bytes(a.cast_mut_ptr(), length as usize) == bytes(b.cast_mut_ptr(), length as usize)
            }
            (false, -1) => {
                let a = pg_sys::pg_detoast_datum_packed(a.cast_mut_ptr());
                let b = pg_sys::pg_detoast_datum_packed(b.cast_mut_ptr());
                let contents =
                    |varlena| bytes(pgrx::vardata_any(varlena).cast(), pgrx::varsize_any_exhdr(varlena));
                contents(a) == contents(b)
            }
            (false, _) => CStr::from_ptr(a.cast_mut_ptr()) == CStr::from_ptr(b.cast_mut_ptr()),
        }
    }
}

/// # Safety
/// There are so many bytes.
unsafe fn bytes<'b>(start: *const u8, length: usize) -> &'b [u8] {
    // SAFETY: by contract.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// The text its type's output function gives a datum.
///
/// # Safety
/// `datum` is a valid, non-NULL datum of type `type_oid`.
unsafe fn output(datum: pg_sys::Datum, type_oid: pg_sys::Oid) -> Option<String> {
    let (mut function, mut is_varlena) = (pg_sys::InvalidOid, false);
    // SAFETY: by contract; the output function gives back a palloc'd C string.
    unsafe {
        pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut is_varlena);
        super::catalog::text(pg_sys::OidOutputFunctionCall(function, datum))
    }
}

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    use super::*;

    fn round(type_oid: pg_sys::Oid, value: Scalar<'_>) -> OwnedScalar {
        let datum = DatumWriter::new(type_oid, -1).datum(value).expect("it fits").expect("not NULL");
        // SAFETY: the datum was just made for the type.
        unsafe { read(datum, type_oid) }
    }

    #[pg_test]
    fn values_come_back_as_they_were_stored() {
        for (type_oid, value) in [
            (pg_sys::BOOLOID, Scalar::Boolean(true)),
            (pg_sys::INT2OID, Scalar::Integer(-5)),
            (pg_sys::INT4OID, Scalar::Integer(i64::from(i32::MIN))),
            (pg_sys::INT8OID, Scalar::Integer(i64::MAX)),
            (pg_sys::FLOAT4OID, Scalar::Float(-0.5)),
            (pg_sys::FLOAT8OID, Scalar::Float(1e300)),
            (pg_sys::TIMESTAMPTZOID, Scalar::Micros(1_481_683_604_000_000)),
            (pg_sys::TIMESTAMPOID, Scalar::Micros(-1)),
            (pg_sys::DATEOID, Scalar::Days(-10_000)),
            (pg_sys::TIMEOID, Scalar::TimeOfDay(86_399_000_000)),
            (pg_sys::INTERVALOID, Scalar::Seconds(16_801 * 86_400 + 137)),
            (pg_sys::INTERVALOID, Scalar::Seconds(-61)),
        ] {
            assert_eq!(round(type_oid, value).borrow(), value);
        }
        assert_eq!(round(pg_sys::TEXTOID, Scalar::Text("ä\r\n")), OwnedScalar::Text("ä\r\n".to_owned()));
        assert_eq!(
            round(pg_sys::NUMERICOID, Scalar::Text("699.990")),
            OwnedScalar::Text("699.990".to_owned())
        );
    }

    #[pg_test]
    fn values_of_another_family_go_through_the_input_function() {
        assert_eq!(round(pg_sys::TEXTOID, Scalar::Integer(7)), OwnedScalar::Text("7".to_owned()));
        assert_eq!(round(pg_sys::NUMERICOID, Scalar::Integer(7)), OwnedScalar::Text("7".to_owned()));
    }

    #[pg_test]
    fn what_is_out_of_range_does_not_fit() {
        let writer = DatumWriter::new(pg_sys::INT2OID, -1);
        assert_eq!(writer.datum(Scalar::Integer(40_000)).unwrap_err(), Misfit);
    }
}
