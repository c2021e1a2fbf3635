//! Secrets that guest and host derive for themselves.

/// Length of a secret in bytes.
pub const SECRET_LEN: usize = 32;

/// The seed used where a test does not choose one. It is public: it is not part of any secret.
pub const DEFAULT_SEED: &str = "elision testbed";

/// The secret of `label`: the first 32 hex digits of BLAKE3(seed, 0, label), as ASCII.
#[must_use]
pub fn secret(seed: &str, label: &str) -> [u8; SECRET_LEN] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hasher = blake3::Hasher::new();
    hasher.update(seed.as_bytes()).update(&[0]).update(label.as_bytes());
    let hash = hasher.finalize();
    let mut out = [0; SECRET_LEN];
    for (pair, byte) in out.chunks_exact_mut(2).zip(hash.as_bytes()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_the_head_of_the_hash_in_hex() {
        let whole = blake3::hash(b"seed\0label").to_hex();
        assert_eq!(secret("seed", "label"), whole.as_bytes()[..SECRET_LEN]);
    }

    #[test]
    fn seed_and_label_do_not_run_into_each_other() {
        assert_ne!(secret("a", "bc"), secret("ab", "c"));
    }
}
