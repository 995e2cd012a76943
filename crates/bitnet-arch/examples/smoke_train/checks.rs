use serde::Serialize;

/// What the run claims, and whether it held.
#[derive(Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Checks(Vec<Check>);

#[derive(Serialize)]
struct Check {
    claim: String,
    held: bool,
    found: String,
}

impl Checks {
    pub(crate) fn that(&mut self, claim: &str, held: bool, found: String) {
        self.0.push(Check { claim: claim.into(), held, found });
    }

    pub(crate) fn all_held(&self) -> bool {
        self.0.iter().all(|check| check.held)
    }

    pub(crate) fn print(&self) {
        for Check { claim, held, found } in &self.0 {
            println!("{} {claim}: {found}", if *held { "ok  " } else { "FAIL" });
        }
    }
}
