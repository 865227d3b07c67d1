//! Deliberate faults of the scripts, by which the shared suite proves that it would notice them:
//! other words in place of some that are there.

macro_rules! changes {
    ($($name:literal, $what:literal: $sound:literal => $broken:literal;)*) => {
        /// Every variant with what is wrong in it.
        pub const ALL: &[(&str, &str)] = &[$(($name, $what)),*];

        /// By variant, what stands in a script, and what stands there instead.
        const CHANGES: &[(&str, &str, &str)] =
            &[$((concat!("redis:", $name), $sound, $broken)),*];
    };
}

changes! {
    "rounded-token", "tokens are printed by Lua's `tostring`, which rounds to 14 digits":
        "return tonumber(text), text" =>
        "return tonumber(text), string.format('%.0f', tonumber(tostring(tonumber(text))))";
    "plain-del", "a release deletes the key, whoever holds it":
        "local held = owner == nonce" => "local held = true";
    "no-void", "a claim is taken although it was abandoned":
        "if call('EXISTS', KEYS[6]) == 1 then" => "if false then";
    "renews-anothers", "a renewal extends the key, whoever holds it":
        "if soft('GET', claim) ~= ARGV[1] then" => "if false then";
    "updates-blindly", "a changed record is not compared with what stands there":
        "if record and record ~= ARGV[2] then" => "if false then";
    "newcomers-first", "a newcomer that finds the name free passes those who stand in line":
        "if owner or (first and first ~= place) then" => "if owner then";
    "no-message", "a release sends no message to the first in line":
        "if waiting > 0 and (held or (queued and not owner)) then" => "if false then";
    "dead-wait-on", "who gives no sign any more keeps its place in line":
        "if till and now <= till and till - now <= 2 * PATIENCE then" => "if till then";
}

/// The script as the server gets it: with the chosen fault in it.
pub(crate) fn served(code: &'static str) -> &'static str {
    match CHANGES.iter().find(|(name, ..)| sync_core::mutant::on(name)) {
        Some((_, sound, broken)) => code.replace(sound, broken).leak(),
        None => code,
    }
}
