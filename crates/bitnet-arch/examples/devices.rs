//! Prints each backend and whether its device answers on this machine.

use bitnet_arch::quant::device_report;

fn main() {
    for (name, found) in device_report() {
        match found {
            Ok(_) => println!("{name} present"),
            Err(reason) => println!("{name} absent: {reason}"),
        }
    }
}
