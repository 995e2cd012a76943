//! Four codes in one byte, the base of every two-bit format.

/// Four codes, lowest pair first: `c0 | c1<<2 | c2<<4 | c3<<6`, each stored as the digit code + 1.
pub fn pack4(codes: [i8; 4]) -> u8 {
    codes.iter().rev().fold(0, |byte, &code| byte << 2 | (code.wrapping_add(1) as u8 & 3))
}

/// The inverse of [`pack4`]. The spare digit 3, which ternary codes never give, reads as code 2.
pub fn unpack4(byte: u8) -> [i8; 4] {
    [byte, byte >> 2, byte >> 4, byte >> 6].map(|digit| (digit & 3) as i8 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_inverts_unpacking() {
        for byte in 0..=255 {
            assert_eq!(pack4(unpack4(byte)), byte);
        }
        assert_eq!(pack4([-1, 0, 1, -1]), 0b00_10_01_00);
        assert_eq!(unpack4(0b11_10_01_00), [-1, 0, 1, 2]);
        assert_eq!(pack4([i8::MAX; 4]), 0, "other codes give some byte");
    }
}
