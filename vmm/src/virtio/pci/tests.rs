//! The transport without KVM: a driver written by hand, and random pokes.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory;
use crate::platform::fake::FakePlatform;
use crate::virtio::device::{QueueState, SavedDevice};

#[derive(Debug, Default)]
struct Log {
    activations: u32,
    resets: u32,
    rings: Vec<QueueState>,
    features: u64,
    interrupt: Option<Arc<dyn super::super::device::Interrupt>>,
}

#[derive(Debug)]
struct Fake {
    log: Arc<Mutex<Log>>,
    queues: Vec<ActiveQueue>,
}

impl VirtioDevice for Fake {
    fn id(&self) -> &str {
        "fake"
    }
    fn device_type(&self) -> u32 {
        2
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[256, 64]
    }
    fn device_features(&self) -> u64 {
        1 << 5
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset & 0xff).unwrap());
    }
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let mut log = self.log.lock().unwrap();
        log.activations += 1;
        log.features = activation.features;
        log.rings = activation
            .queues
            .iter()
            .map(|q| QueueState::capture(q.index, &q.queue))
            .collect();
        log.interrupt = Some(activation.interrupt);
        self.queues = activation.queues;
        Ok(())
    }
    fn on_event(&mut self, _token: u32, _events: EventSet) {}
    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn reset(&mut self) {
        self.log.lock().unwrap().resets += 1;
        self.queues.clear();
    }
    fn save(&self) -> Result<SavedDevice, DeviceError> {
        Ok(SavedDevice {
            state: serde_json::json!({"version": 1}),
            queues: self
                .queues
                .iter()
                .map(|q| QueueState::capture(q.index, &q.queue))
                .collect(),
        })
    }
}

fn function() -> (Arc<FakePlatform>, Arc<Mutex<Log>>, VirtioPci) {
    let platform = Arc::new(FakePlatform::default());
    let log = Arc::new(Mutex::new(Log::default()));
    let context = TransportContext {
        mem: memory::anonymous(1 << 20).unwrap(),
        platform: Arc::clone(&platform) as Arc<dyn Platform>,
        events: EventLoop::new().unwrap(),
    };
    let device = Fake {
        log: Arc::clone(&log),
        queues: Vec::new(),
    };
    let function = VirtioPci::new(Address::new(8).unwrap(), Box::new(device), context).unwrap();
    (platform, log, function)
}

fn read<const N: usize>(function: &mut VirtioPci, offset: u64) -> [u8; N] {
    let mut data = [0; N];
    function.bar_read(offset, &mut data);
    data
}

/// What Linux does, in its order (virtio 1.2 §3.1.1), up to DRIVER_OK.
fn drive(function: &mut VirtioPci, desc: u64) {
    function.config_write(4, &[6, 0]);
    function.bar_write(0x14, &[0]);
    function.bar_write(0x14, &[1]);
    function.bar_write(0x14, &[3]);
    let mut offered = 0u64;
    for half in 0..2u32 {
        function.bar_write(0, &half.to_le_bytes());
        offered |= u64::from(u32::from_le_bytes(read(function, 4))) << (32 * half);
    }
    assert_eq!(offered, 1 << 32 | 1 << 29 | 1 << 28 | 1 << 5);
    for half in 0..2u32 {
        function.bar_write(8, &half.to_le_bytes());
        let value = u32::try_from(offered >> (32 * half) & 0xffff_ffff).unwrap();
        function.bar_write(0xc, &value.to_le_bytes());
    }
    function.bar_write(0x14, &[0xb]);
    assert_eq!(read::<1>(function, 0x14), [0xb]);
    // MSI-X: enable with everything masked, program, unmask.
    let cap = function.msix_cap;
    function.config_write(cap + 2, &0xc000u16.to_le_bytes());
    for vector in 0..3u32 {
        let at = TABLE_AT + u64::from(vector) * 16;
        function.bar_write(at, &0xfee0_0000u32.to_le_bytes());
        function.bar_write(at + 8, &(0x30 + vector).to_le_bytes());
        function.bar_write(at + 12, &0u32.to_le_bytes());
    }
    function.config_write(cap + 2, &0x8000u16.to_le_bytes());
    function.bar_write(0x10, &0u16.to_le_bytes());
    for queue in 0..2u16 {
        function.bar_write(0x16, &queue.to_le_bytes());
        function.bar_write(0x18, &32u16.to_le_bytes());
        function.bar_write(0x1a, &(queue + 1).to_le_bytes());
        let base = desc + u64::from(queue) * 0x4000;
        for (at, value) in [(0x20, base), (0x28, base + 0x1000), (0x30, base + 0x2000)] {
            let low = u32::try_from(value & 0xffff_ffff).unwrap();
            function.bar_write(at, &low.to_le_bytes());
            function.bar_write(at + 4, &u32::try_from(value >> 32).unwrap().to_le_bytes());
        }
        function.bar_write(0x1c, &1u16.to_le_bytes());
    }
    function.bar_write(0x14, &[0xf]);
}

#[test]
fn a_driver_brings_the_device_up_and_down() {
    let (platform, log, mut function) = function();
    drive(&mut function, 0x1_0000);
    assert_eq!(read::<1>(&mut function, 0x14), [0xf]);
    {
        let log = log.lock().unwrap();
        assert_eq!(log.activations, 1);
        assert_eq!(log.features >> 28 & 1, 1);
        assert_eq!(log.rings.len(), 2);
        assert_eq!((log.rings[1].size, log.rings[1].max_size), (32, 64));
        assert_eq!(log.rings[1].used_ring, 0x1_6000);
        assert!(log.rings[0].event_idx);
    }
    assert_eq!(platform.routes.lock().unwrap().len(), 3);
    let bells: Vec<u64> = platform.doorbells.lock().unwrap().keys().copied().collect();
    let bar = u64::from(function.config.decoded_bar().unwrap());
    assert_eq!(bells, [bar + 0x3000, bar + 0x3004]);

    // A moved BAR moves the doorbells.
    function.config_write(0x10, &0xc700_0000u32.to_le_bytes());
    let bells: Vec<u64> = platform.doorbells.lock().unwrap().keys().copied().collect();
    assert_eq!(bells, [0xc700_3000, 0xc700_3004]);

    // An interrupt reaches the vector of its queue.
    log.lock()
        .unwrap()
        .interrupt
        .as_ref()
        .unwrap()
        .signal_queue(1);
    assert_eq!(function.msix.fds()[2].read().unwrap(), 1);

    function.bar_write(0x14, &[0]);
    assert_eq!(log.lock().unwrap().resets, 1);
    assert!(platform.doorbells.lock().unwrap().is_empty());
    assert_eq!(read::<1>(&mut function, 0x14), [0]);
    drive(&mut function, 0x2_0000);
    assert_eq!(log.lock().unwrap().activations, 2);
}

#[test]
fn rings_outside_of_memory_make_the_device_ask_for_a_reset() {
    let (_, log, mut function) = function();
    drive(&mut function, 0x10_0000 - 0x4000);
    assert_eq!(read::<1>(&mut function, 0x14), [0x4f]);
    assert_eq!(log.lock().unwrap().activations, 0);
    // The configuration interrupt says so.
    assert_eq!(function.msix.fds()[0].read().unwrap(), 1);
}

#[test]
fn a_driver_without_version_1_does_not_get_features_ok() {
    let (_, log, mut function) = function();
    function.bar_write(0x14, &[3]);
    function.bar_write(0x14, &[0xb]);
    assert_eq!(read::<1>(&mut function, 0x14), [3]);
    function.bar_write(0x14, &[0xf]);
    assert_eq!(read::<1>(&mut function, 0x14), [3]);
    assert_eq!(log.lock().unwrap().activations, 0);
}

#[test]
fn an_active_device_continues_in_a_second_function() {
    let (_, _, mut one) = function();
    drive(&mut one, 0x1_0000);
    one.msix.fds()[0].read().unwrap_or(0);
    let saved = one.save().unwrap();
    let text = serde_json::to_string(&saved).unwrap();
    let saved: SavedFunction = serde_json::from_str(&text).unwrap();

    let (platform, log, mut two) = function();
    two.restore(&saved).unwrap();
    assert_eq!(log.lock().unwrap().activations, 1);
    assert_eq!(platform.routes.lock().unwrap().len(), 3);
    assert_eq!(platform.doorbells.lock().unwrap().len(), 2);
    assert_eq!(two.save().unwrap(), saved);
    // Each queue was kicked and interrupted once.
    assert_eq!(two.kicks[1].read().unwrap(), 1);
    assert_eq!(two.msix.fds()[2].read().unwrap(), 1);

    let mut wrong = saved.clone();
    wrong.common.acked |= 1 << 40;
    let (_, _, mut three) = function();
    assert!(matches!(
        three.restore(&wrong),
        Err(TransportRestoreError::Differs { .. })
    ));
    let mut wrong = saved.clone();
    wrong.device.queues[0].desc_table = 0xffff_0000;
    assert!(matches!(
        three.restore(&wrong),
        Err(TransportRestoreError::Queue { .. })
    ));
}

#[derive(Debug, Clone)]
enum Poke {
    Config(usize, Vec<u8>),
    Bar(u64, Vec<u8>),
    ReadConfig(usize, usize),
    ReadBar(u64, usize),
}

fn poke() -> impl Strategy<Value = Poke> {
    let width = prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    let data = width
        .clone()
        .prop_flat_map(|n| prop::collection::vec(any::<u8>(), n));
    let small = prop_oneof![
        Just(0u8),
        Just(1),
        Just(3),
        Just(0xb),
        Just(0xf),
        any::<u8>()
    ];
    let offset = prop_oneof![
        0..0x40u64,
        0x3000..0x3010u64,
        0x4000..0x4040u64,
        0..0x9000u64
    ];
    prop_oneof![
        (0..260usize, data.clone()).prop_map(|(o, d)| Poke::Config(o, d)),
        (offset.clone(), data).prop_map(|(o, d)| Poke::Bar(o, d)),
        small.prop_map(|s| Poke::Bar(0x14, vec![s])),
        (0..260usize, width.clone()).prop_map(|(o, n)| Poke::ReadConfig(o, n)),
        (offset, width).prop_map(|(o, n)| Poke::ReadBar(o, n)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever a guest writes where: no panic, no connection twice (the fake platform checks),
    /// and activations and resets in turn.
    #[test]
    fn random_pokes_are_harmless(pokes in prop::collection::vec(poke(), 1..200), up in any::<bool>()) {
        let (platform, log, mut function) = function();
        if up {
            drive(&mut function, 0x1_0000);
        }
        for poke in pokes {
            match poke {
                Poke::Config(offset, data) => function.config_write(offset, &data),
                Poke::Bar(offset, data) => function.bar_write(offset, &data),
                Poke::ReadConfig(offset, n) => function.config_read(offset, &mut vec![0; n]),
                Poke::ReadBar(offset, n) => function.bar_read(offset, &mut vec![0; n]),
            }
            let log = log.lock().unwrap();
            prop_assert!(log.activations - log.resets <= 1);
            prop_assert_eq!(log.activations - log.resets == 1, function.is_active());
        }
        drop(function);
        prop_assert!(platform.routes.lock().unwrap().is_empty());
        prop_assert!(platform.doorbells.lock().unwrap().is_empty());
    }
}

#[test]
fn guest_memory_is_not_touched_by_the_transport() {
    let (_, _, mut function) = function();
    let mem = function.context.mem.clone();
    drive(&mut function, 0x1_0000);
    let mut all = vec![0u8; 1 << 20];
    mem.read_slice(&mut all, GuestAddress(0)).unwrap();
    assert!(all.iter().all(|b| *b == 0));
}
