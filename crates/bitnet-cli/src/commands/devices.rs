//! `bitnet devices`

use bitnet_quant::device_report;

use crate::error::CliError;
use crate::output::print_line;

pub(crate) fn run() -> Result<(), CliError> {
    for (name, found) in device_report() {
        match found {
            Ok(_) => print_line(&format!("{name} present"))?,
            Err(reason) => print_line(&format!("{name} absent: {reason}"))?,
        }
    }
    Ok(())
}
