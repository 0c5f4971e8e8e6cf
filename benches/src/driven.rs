//! What following a control plane costs: a real proxy, a scripted istiod, and meshes of any size.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lab::{Driven, DrivenOptions, Result, Ztunnel, ZtunnelOptions};
use xds_client::ResourceType;
use xds_client::workload::Service;

use crate::mesh;
use crate::usage::{cpu_time, memory, peak};

/// Single changes measured, one after another.
const CHANGES: u32 = 1_000;
/// Changed services, each of which istiod sends again with all of its workloads.
const SERVICES: u32 = 50;
/// Time after which memory counts as what it will stay at: the allocator gives back what is not used.
const SETTLING: Duration = Duration::from_secs(12);

/// What was measured with a mesh of one size.
#[derive(Debug)]
pub struct DrivenFigures {
    /// Workloads in the mesh; there is a service for every 20.
    pub workloads: usize,
    /// From the start of the process until it is ready.
    pub ready: Cost,
    /// Resident memory before the mesh, of a proxy that knows four workloads.
    pub empty_rss: u64,
    /// Resident memory with the mesh, in kB.
    pub rss: u64,
    /// Until one changed pod is acknowledged.
    pub changed_pod: Cost,
    /// Until one changed service and its unchanged workloads are acknowledged.
    pub changed_service: Cost,
    /// Until all resources, sent again unchanged, are acknowledged.
    pub resend: Cost,
    /// Resident memory after that.
    pub rss_after_resend: u64,
    /// The configuration dump, as a client on loopback receives it.
    pub dump: Cost,
    /// Its size in bytes.
    pub dump_bytes: usize,
    /// The most memory that was resident at any time, in kB.
    pub peak_rss: u64,
}

/// Time on the clock, and CPU of all threads of the proxy.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// On the clock.
    pub wall: Duration,
    /// Of the proxy.
    pub cpu: Duration,
}

/// Starts a proxy against a mesh of `workloads` and measures it. `binary` is the release build as a rule.
pub fn measure(workloads: usize, binary: PathBuf) -> Result<DrivenFigures> {
    let options = ZtunnelOptions { binary: Some(binary), ..ZtunnelOptions::default() };
    let mut scene = Driven::prepare(&DrivenOptions { ztunnel: options, ..DrivenOptions::default() })?;
    scene.istiod.listen()?;
    scene.east.start()?;
    scene.east.ztunnel()?.wait_ready()?;
    std::thread::sleep(Duration::from_secs(1));
    let empty_rss = memory(pid(&scene)?)?.rss;
    scene.east.stop();

    scene.istiod.edit(|world| {
        (0..mesh::services(workloads)).for_each(|number| world.set_service(mesh::service(number)));
        (0..workloads).for_each(|number| world.set_workload(mesh::pod(number, 0)));
    });
    let started = Instant::now();
    scene.east.start()?;
    scene.east.ztunnel()?.wait_ready()?;
    let ready = Cost { wall: started.elapsed(), cpu: cpu_time(pid(&scene)?)? };
    std::thread::sleep(SETTLING);
    let rss = memory(pid(&scene)?)?.rss;

    let changed_pod = repeated(&scene, CHANGES, |number| {
        let pod = mesh::pod(number as usize * 7 % workloads, 1 + number as usize);
        scene.istiod.push(|world| world.set_workload(pod));
    })?;
    let changed_service = repeated(&scene, SERVICES, |number| {
        let service = number as usize * 3 % mesh::services(workloads);
        let service = Service { canonical: number % 2 == 0, ..mesh::service(service) };
        // A change of another kind each time, so that none is the same as before.
        let service = Service { name: format!("{}-{number}", service.name), ..service };
        scene.istiod.push(|world| world.set_service(service));
    })?;
    let resend = cost_of(&scene, || {
        scene.istiod.push(|world| {
            for number in 0..mesh::services(workloads) {
                world.touch(ResourceType::Address, &mesh::service_name(number));
            }
            for number in 0..workloads {
                world.touch(ResourceType::Address, &mesh::pod(number, 0).uid);
            }
        });
        acknowledged(&scene)
    })?;
    std::thread::sleep(SETTLING);
    let rss_after_resend = memory(pid(&scene)?)?.rss;
    let dump = cost_of(&scene, || fetch_dump(&scene, Path::new("/dev/null")))?;
    let dump_bytes = check_dump(&scene)?;
    let peak_rss = peak(pid(&scene)?)?;
    Ok(DrivenFigures {
        workloads,
        ready,
        empty_rss,
        rss,
        changed_pod,
        changed_service,
        resend,
        rss_after_resend,
        dump,
        dump_bytes,
        peak_rss,
    })
}

fn ztunnel(scene: &Driven) -> Result<&Ztunnel> {
    scene.east.ztunnel()
}

fn pid(scene: &Driven) -> Result<u32> {
    Ok(ztunnel(scene)?.process().id())
}

fn acknowledged(scene: &Driven) -> Result<()> {
    scene.istiod.wait_acked(&scene.east.control.pod, ResourceType::Address)
}

/// The mean of `count` changes, each of which is acknowledged before the next.
fn repeated(scene: &Driven, count: u32, mut change: impl FnMut(u32)) -> Result<Cost> {
    let total = cost_of(scene, || {
        (0..count).try_for_each(|number| {
            change(number);
            acknowledged(scene)
        })
    })?;
    Ok(Cost { wall: total.wall / count, cpu: total.cpu / count })
}

fn cost_of(scene: &Driven, what: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let (cpu, started) = (cpu_time(pid(scene)?)?, Instant::now());
    what()?;
    Ok(Cost { wall: started.elapsed(), cpu: cpu_time(pid(scene)?)? - cpu })
}

fn fetch_dump(scene: &Driven, file: &Path) -> Result<()> {
    let file = file.display().to_string();
    scene.east.node.feed("curl", &["-sf", "-o", &file, "http://127.0.0.1:15000/config_dump"], "")
}

/// The dump has to be JSON and to have the whole mesh in it. Returns its size.
fn check_dump(scene: &Driven) -> Result<usize> {
    let file = scene.east.node.directory().join("dump.json");
    fetch_dump(scene, &file)?;
    let body = std::fs::read_to_string(file)?;
    let parsed: serde_json::Value = serde_json::from_str(&body).context("the dump is no JSON")?;
    let known = parsed["workloads"].as_array().map_or(0, Vec::len);
    ensure!(
        known >= scene.istiod.read(|world| world.count(ResourceType::Address)) * 9 / 10,
        "{known} workloads"
    );
    Ok(body.len())
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        write!(f, "{:.2} ms ({:.2} ms CPU)", milliseconds(self.wall), milliseconds(self.cpu))
    }
}

impl fmt::Display for DrivenFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |kilobytes: u64| kilobytes as f64 * 1024.0 / 1e6;
        writeln!(f, "{} workloads, {} services", self.workloads, mesh::services(self.workloads))?;
        writeln!(f, "  ready                        {}", self.ready)?;
        writeln!(f, "  resident, without a mesh     {:.1} MB", megabytes(self.empty_rss))?;
        writeln!(f, "  resident                     {:.1} MB", megabytes(self.rss))?;
        writeln!(f, "  one changed pod              {}", self.changed_pod)?;
        writeln!(f, "  one changed service          {}", self.changed_service)?;
        writeln!(f, "  all sent again, unchanged    {}", self.resend)?;
        writeln!(f, "  resident after that          {:.1} MB", megabytes(self.rss_after_resend))?;
        writeln!(f, "  dump of {:.1} MB{:15}{}", self.dump_bytes as f64 / 1e6, "", self.dump)?;
        writeln!(f, "  most resident at any time    {:.1} MB", megabytes(self.peak_rss))
    }
}
