//! Money of the bus: whole numbers of its smallest unit, eighteen decimals below one TNK.

use std::{fmt, str::FromStr};

/// Decimals of a TNK.
const DECIMALS: usize = 18;

/// The smallest units in one TNK.
const TNK: u128 = 10_u128.pow(DECIMALS as u32);

/// An amount in the bus's smallest unit. Prints as TNK: `0.03 TNK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Amount(pub u128);

/// Text that is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an amount of TNK like 10 or 0.03, with at most 18 decimals, got {0:?}")]
pub struct ParseAmountError(String);

impl Amount {
    /// Nothing.
    pub const ZERO: Amount = Amount(0);

    /// So many whole TNK.
    pub const fn tnk(tnk: u64) -> Amount {
        Amount(tnk as u128 * TNK)
    }

    /// Reads what the HTTP API writes: decimal digits, the smallest unit. `None` for anything else.
    pub fn from_units(text: &str) -> Option<Amount> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| digits).map(Amount)
    }

    /// How many times `part` is in it. `None` when `part` is nothing.
    pub fn times(self, part: Amount) -> Option<u128> {
        self.0.checked_div(part.0)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = format!("{:018}", self.0 % TNK);
        let whole = self.0 / TNK;
        match fraction.trim_end_matches('0') {
            "" => write!(f, "{whole} TNK"),
            fraction => write!(f, "{whole}.{fraction} TNK"),
        }
    }
}

/// Reads TNK as people write it: `10`, `0.03`, also with ` TNK` behind.
impl FromStr for Amount {
    type Err = ParseAmountError;

    fn from_str(text: &str) -> Result<Amount, ParseAmountError> {
        let wrong = || ParseAmountError(text.chars().take(80).collect());
        let number = text.strip_suffix("TNK").unwrap_or(text).trim_end();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > DECIMALS {
            return Err(wrong());
        }
        let fraction: u128 = format!("{fraction:0<18}").parse().map_err(|_| wrong())?;
        let whole: u128 = whole.parse().map_err(|_| wrong())?;
        let units = whole.checked_mul(TNK).and_then(|units| units.checked_add(fraction));
        units.map(Amount).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_they_are_printed() {
        let cases = [
            (0, "0 TNK"),
            (1, "0.000000000000000001 TNK"),
            (30_000_000_000_000_000, "0.03 TNK"),
            (TNK, "1 TNK"),
            (12 * TNK + TNK / 2, "12.5 TNK"),
            (u128::MAX, "340282366920938463463.374607431768211455 TNK"),
        ];
        for (units, text) in cases {
            assert_eq!((Amount(units).to_string().as_str(), text.parse()), (text, Ok(Amount(units))));
        }
        assert_eq!("7".parse(), Ok(Amount::tnk(7)));
        assert_eq!("0.5TNK".parse(), Ok(Amount(TNK / 2)));
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        let too_precise = format!("0.{}1", "0".repeat(18));
        for wrong in ["", "-1", "+1", "1,5", ".5", "1.", "1e3", "TNK", &too_precise, "340282366920938463464", "1 2"] {
            assert!(wrong.parse::<Amount>().is_err(), "{wrong:?}");
        }
        for wrong in ["", "+1", "-1", "1.0", "0x1", "340282366920938463463374607431768211456"] {
            assert_eq!(Amount::from_units(wrong), None, "{wrong:?}");
        }
        assert_eq!(Amount::from_units("30000000000000000"), Some(Amount(TNK / 100 * 3)));
    }
}
