//! The GGUF reader on any bytes: no panic, every tensor inside the file, and what it read writes back the
//! same.
#![no_main]

use bitnet_format::gguf::{Gguf, Header, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Gguf::read(bytes) else { return };
    let metadata: Vec<_> = file.metadata().collect();
    let tensors: Vec<_> = file.tensors().collect();

    let mut header = Header::new();
    for (key, value) in &metadata {
        visit(value);
        assert_eq!(file.get(key).map(|found| format!("{found:?}")), Some(format!("{value:?}")));
        if header.set(key, value.clone()).is_err() {
            return; // the writer is stricter about keys
        }
    }
    for tensor in &tensors {
        assert_eq!(file.tensor(tensor.name).as_ref(), Some(tensor));
        assert_eq!(tensor.kind.data_len(&tensor.shape), Some(tensor.data.len()));
        if header.tensor(tensor.name, tensor.kind, &tensor.shape).is_err() {
            return; // the writer is stricter about names
        }
    }
    if file.alignment() > 4096 {
        return; // padding that only takes memory
    }

    let mut writer = header.write_to(Vec::new()).expect("memory takes everything");
    for tensor in &tensors {
        writer.tensor(tensor.name, tensor.data).expect("the order is the header's");
    }
    let written = writer.finish().expect("every tensor is written");
    let again = Gguf::read(&written).expect("what the writer wrote, the reader reads");
    assert_eq!(again.alignment(), file.alignment());
    assert!(again.tensors().eq(tensors));
    // By text, since a float that is no number is not equal to itself.
    assert_eq!(format!("{:?}", again.metadata().collect::<Vec<_>>()), format!("{metadata:?}"));
});

/// Reads every item of every array.
fn visit(value: &Value) {
    if let Some(array) = value.as_array() {
        assert_eq!(array.iter().inspect(visit).count(), array.len());
    }
}
