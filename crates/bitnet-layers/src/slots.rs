use crate::Projection;

/// A module whose projection slots can be visited. Implement it with [`slots!`](crate::slots!).
pub trait Slots {
    /// Calls `visit` with the path and the slot, for each slot below this module, in the order of its fields.
    ///
    /// `path` is the path of this module: empty at the root.
    fn visit_slots(&self, path: &str, visit: &mut dyn FnMut(&str, &Projection));

    /// Like [`visit_slots`](Self::visit_slots), for changing the slots.
    fn visit_slots_mut(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Projection));
}

impl Slots for Projection {
    fn visit_slots(&self, path: &str, visit: &mut dyn FnMut(&str, &Projection)) {
        visit(path, self);
    }

    fn visit_slots_mut(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Projection)) {
        visit(path, self);
    }
}

impl<S: Slots> Slots for Option<S> {
    fn visit_slots(&self, path: &str, visit: &mut dyn FnMut(&str, &Projection)) {
        if let Some(module) = self {
            module.visit_slots(path, visit);
        }
    }

    fn visit_slots_mut(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Projection)) {
        if let Some(module) = self {
            module.visit_slots_mut(path, visit);
        }
    }
}

impl<S: Slots> Slots for Vec<S> {
    fn visit_slots(&self, path: &str, visit: &mut dyn FnMut(&str, &Projection)) {
        for (i, module) in self.iter().enumerate() {
            module.visit_slots(&slot_path(path, &i.to_string()), visit);
        }
    }

    fn visit_slots_mut(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Projection)) {
        for (i, module) in self.iter_mut().enumerate() {
            module.visit_slots_mut(&slot_path(path, &i.to_string()), visit);
        }
    }
}

/// The path of a field: `layers.0` and `q_proj` give `layers.0.q_proj`.
pub fn slot_path(parent: &str, field: &str) -> String {
    if parent.is_empty() { field.into() } else { format!("{parent}.{field}") }
}

/// Implements [`Slots`] for a module by naming its fields that are slots or hold slots: a [`Projection`], a module
/// with slots, or a `Vec` or `Option` of either.
///
/// ```
/// # use bitnet_layers::{Projection, slots};
/// struct Block { q_proj: Projection, mlp: Option<Mlp> }
/// struct Mlp { layers: Vec<Projection> }
/// slots!(Block { q_proj, mlp });
/// slots!(Mlp { layers });
/// ```
#[macro_export]
macro_rules! slots {
    ($module:ty { $($field:ident),+ $(,)? }) => {
        impl $crate::Slots for $module {
            fn visit_slots(&self, path: &str, visit: &mut dyn FnMut(&str, &$crate::Projection)) {
                $($crate::Slots::visit_slots(
                    &self.$field, &$crate::slot_path(path, stringify!($field)), visit,
                );)+
            }

            fn visit_slots_mut(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut $crate::Projection)) {
                $($crate::Slots::visit_slots_mut(
                    &mut self.$field, &$crate::slot_path(path, stringify!($field)), visit,
                );)+
            }
        }
    };
}

/// Visits every slot of a module with its path, as in `layers.0.attention.query`.
pub fn for_each_slot(module: &impl Slots, mut visit: impl FnMut(&str, &Projection)) {
    module.visit_slots("", &mut visit);
}

/// Visits every slot of a module to change it.
pub fn for_each_slot_mut(module: &mut impl Slots, mut visit: impl FnMut(&str, &mut Projection)) {
    module.visit_slots_mut("", &mut visit);
}

/// Writes λ into every slot, dense ones too; `None` makes them follow the process-wide default. Returns their
/// number. Call it once per optimizer step with the warm-up's λ.
pub fn set_lambda(module: &mut impl Slots, lambda: Option<f32>) -> usize {
    let mut n_slots = 0;
    for_each_slot_mut(module, |_, slot| {
        slot.lambda = lambda;
        n_slots += 1;
    });
    n_slots
}
