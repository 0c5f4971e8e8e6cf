//! What a test tells the scripted istiod, and asks of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use identity::{CertificateChain, PrivateKey, Tls, TlsOptions, WorkloadCertificate};
use rcgen::KeyPair;
use tonic::{Code, Status};
use xds_client::ResourceType;
use xds_client::discovery::DeltaDiscoveryResponse;
use xds_client::prost::Message as _;

use super::admission::Caller;
use super::authority::{BACKDATE, Wanted};
use super::ca::{CaBehaviour, CaRequest, Impersonation};
use super::session::Answer;
use super::shared::{Answered, Command, Demand, FirstRequest, Refusal, Shared};
use super::{ScriptedIstiod, World};
use crate::Result;

/// The mesh.
impl ScriptedIstiod {
    /// Changes the mesh and pushes to every stream what has changed.
    pub fn push<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        self.shared.change(|state| {
            let result = change(&mut state.world);
            state.publish();
            result
        })
    }

    /// Changes the mesh and pushes nothing: connected proxies learn of it with the next push.
    pub fn edit<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        self.shared.change(|state| change(&mut state.world))
    }

    /// Looks at the mesh.
    pub fn read<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&self.shared.state().world)
    }
}

/// Breaking the rules.
impl ScriptedIstiod {
    /// Sends a response as it is to every stream; a nonce is added where it is empty, one per stream.
    pub fn send(&self, response: &DeltaDiscoveryResponse) -> Result<()> {
        let kind = ResourceType::from_url(&response.type_url);
        self.shared.change(|state| {
            for stream in state.streams.values_mut() {
                let mut response = response.clone();
                if let Some(kind) = kind.filter(|_| response.nonce.is_empty()) {
                    response.nonce = stream.session.next_nonce(kind);
                }
                let bytes = response.encode_to_vec().into();
                stream.commands.send(Command::Send(bytes)).context("a stream has ended meanwhile")?;
            }
            Ok(())
        })
    }

    /// Sends a message of any bytes to every stream.
    pub fn send_bytes(&self, bytes: impl Into<Bytes>) {
        self.shared.state().command_all(&Command::Send(bytes.into()));
    }

    /// Keeps back all responses of a type, first ones too, until [`release`](Self::release).
    pub fn hold(&self, kind: ResourceType) {
        self.shared.change(|state| state.held.insert(kind));
    }

    /// Sends what has been kept back.
    pub fn release(&self, kind: ResourceType) {
        self.shared.change(|state| {
            state.held.remove(&kind);
            state.command_all(&Command::Resume);
        });
    }

    /// Ends all streams with a code. [`Code::Ok`] closes them in order.
    pub fn close_streams(&self, code: Code, message: &str) {
        self.shared.state().command_all(&Command::Close(Status::new(code, message)));
    }

    /// Refuses every new stream, as an istiod that has not synchronized its caches does.
    pub fn refuse_streams(&self, code: Code, message: &str) {
        self.shared.change(|state| state.refuse = Some((code, message.to_owned())));
    }

    /// Accepts new streams again.
    pub fn accept_streams(&self) {
        self.shared.change(|state| state.refuse = None);
    }

    /// Accepts a token from now on.
    pub fn accept_token(&self, token: &str, caller: Caller) {
        self.shared.change(|state| state.admission.accept(token, caller));
    }

    /// Accepts a token no longer. Open streams go on.
    pub fn refuse_token(&self, token: &str) {
        self.shared.change(|state| state.admission.refuse(token));
    }
}

/// What clients did. Proxies are called by the names of their pods.
impl ScriptedIstiod {
    /// Waits until the proxy has acknowledged all there is of a type.
    ///
    /// Errors: it has not within [`PATIENCE`](crate::PATIENCE), or it has rejected the newest response.
    pub fn wait_acked(&self, proxy: &str, kind: ResourceType) -> Result<()> {
        let answer = self.wait_answered(proxy, kind)?;
        ensure!(answer == Answer::Ack, "{proxy} rejected the newest response of {kind}: {answer:?}");
        Ok(())
    }

    /// Waits until the proxy has answered the newest response of a type, and there is nothing more to tell it.
    pub fn wait_answered(&self, proxy: &str, kind: ResourceType) -> Result<Answer> {
        let what = format!("{proxy} to answer what there is of {kind}");
        self.shared.wait_for(&what, |state| state.current_answer(proxy, kind))
    }

    /// Waits until the proxy has acknowledged all there is of both types.
    pub fn wait_synchronized(&self, proxy: &str) -> Result<()> {
        ResourceType::ALL.into_iter().try_for_each(|kind| self.wait_acked(proxy, kind))
    }

    /// Waits for a NACK of a type by the proxy, and gives its newest message.
    pub fn wait_nacked(&self, proxy: &str, kind: ResourceType) -> Result<String> {
        self.wait_logged(&format!("a NACK from {proxy}"), |answered: &[Answered]| {
            let of_proxy = answered.iter().rev().filter(|one| one.proxy == proxy && one.kind == kind);
            of_proxy.filter_map(Answered::rejection).next()
        })
    }

    /// Waits until `select` gives something for all answers so far.
    pub fn wait_logged<T>(&self, what: &str, mut select: impl FnMut(&[Answered]) -> Option<T>) -> Result<T> {
        self.shared.wait_for(what, |state| select(&state.log.answers))
    }

    /// Waits until `count` streams in all have been accepted.
    pub fn wait_for_streams(&self, count: u64) -> Result<()> {
        let what = format!("{count} streams in all");
        self.shared.wait_for(&what, |state| (state.stream_count >= count).then_some(()))
    }

    /// Waits for a stream, or a request for a certificate, to be refused with this code after the first `seen` refusals.
    pub fn wait_refused(&self, seen: usize, code: Code) -> Result<Refusal> {
        self.shared.wait_for(&format!("a refusal with {code:?}"), |state| {
            state.log.refusals.iter().skip(seen).find(|refusal| refusal.code == code).cloned()
        })
    }

    /// Streams that are open and whose first request has been accepted: numbers and proxies.
    pub fn streams(&self) -> Vec<(u64, String)> {
        let state = self.shared.state();
        state.streams.iter().map(|(number, stream)| (*number, stream.proxy.pod.clone())).collect()
    }

    /// How many streams have been accepted.
    pub fn streams_so_far(&self) -> u64 {
        self.shared.state().stream_count
    }

    /// The first requests of all types on all streams, in order.
    pub fn first_requests(&self) -> Vec<FirstRequest> {
        self.shared.state().log.first_requests.clone()
    }

    /// The newest first request of a type by a proxy.
    pub fn first_request(&self, proxy: &str, kind: ResourceType) -> Result<FirstRequest> {
        let state = self.shared.state();
        let mut requests = state.log.first_requests.iter().rev();
        let found = requests.find(|request| request.proxy == proxy && request.kind == kind);
        found.cloned().with_context(|| format!("{proxy} has not asked for {kind}"))
    }

    /// Names demanded so far, in order.
    pub fn demands(&self) -> Vec<Demand> {
        self.shared.state().log.demands.clone()
    }

    /// Waits until a proxy has demanded a name.
    pub fn wait_demanded(&self, proxy: &str, name: &str) -> Result<()> {
        self.shared.wait_for(&format!("{proxy} to demand {name}"), |state| {
            let demanded =
                |demand: &Demand| demand.proxy == proxy && demand.names.iter().any(|known| known == name);
            state.log.demands.iter().any(demanded).then_some(())
        })
    }

    /// Answers to responses so far, in order.
    pub fn answers(&self) -> Vec<Answered> {
        self.shared.state().log.answers.clone()
    }

    /// The messages of all NACKs so far, in order.
    pub fn nacks(&self) -> Vec<String> {
        self.shared.state().log.answers.iter().filter_map(Answered::rejection).collect()
    }

    /// Calls that were not granted, in order.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.shared.state().log.refusals.clone()
    }

    /// The half of it that signs certificates.
    pub fn ca(&self) -> ScriptedCa<'_> {
        ScriptedCa { shared: &self.shared }
    }
}

impl Answered {
    /// The message, if it is a NACK.
    pub fn rejection(&self) -> Option<String> {
        match &self.answer {
            Answer::Ack => None,
            Answer::Nack(message) => Some(message.clone()),
        }
    }
}

/// A certificate with its key, PEM.
#[derive(Clone)]
pub struct IssuedFiles {
    /// Whose it is.
    pub identity: String,
    /// The private key.
    pub key: String,
    /// The leaf, and intermediates if there are any.
    pub chain: String,
    /// All trusted roots.
    pub roots: String,
}

impl IssuedFiles {
    /// The certificate as a proxy of ours would use it.
    pub(crate) fn certificate(&self) -> Result<WorkloadCertificate> {
        let key = PrivateKey::from_pkcs8_pem(self.key.as_bytes())?;
        let chain = CertificateChain::from_pem_elements(&[&self.chain, &self.roots])?;
        let tls = Tls::new(TlsOptions::default());
        Ok(WorkloadCertificate::new(&self.identity.parse()?, key, chain, &tls, SystemTime::now())?)
    }
}

/// The certificate authority of a [`ScriptedIstiod`].
#[derive(Clone, Copy)]
pub struct ScriptedCa<'a> {
    shared: &'a Shared,
}

impl ScriptedCa<'_> {
    /// What it does with requests from now on.
    pub fn behave(&self, behaviour: CaBehaviour) {
        self.shared.change(|state| state.ca.behaviour = behaviour);
    }

    /// What it does with requests for one identity from now on, whatever it does with others.
    pub fn behave_for(&self, identity: &str, behaviour: CaBehaviour) {
        self.shared.change(|state| state.ca.exceptions.insert(identity.to_owned(), behaviour));
    }

    /// Treats an identity like all others again.
    pub fn behave_as_usual_for(&self, identity: &str) {
        self.shared.change(|state| state.ca.exceptions.remove(identity));
    }

    /// Whose certificates proxies may ask for.
    pub fn allow(&self, impersonation: Impersonation) {
        self.shared.change(|state| state.ca.impersonation = impersonation);
    }

    /// Issues for this long from the moment of issue, whatever is asked for. None: as asked for, and beginning two minutes
    /// earlier, as istiod does.
    pub fn lifetime(&self, lifetime: Option<Duration>) {
        self.shared.change(|state| state.ca.lifetime = lifetime);
    }

    /// Whether leaves are signed by an intermediate certificate.
    pub fn use_intermediates(&self, intermediates: bool) {
        self.shared.change(|state| state.authority.intermediates = intermediates);
    }

    /// First step of a rotation: a new root is trusted beside the old one, which goes on issuing.
    pub fn add_root(&self) -> Result<()> {
        self.shared.change(|state| state.authority.add_root())
    }

    /// Second step: the newest root issues, also the certificate of istiod itself for new connections.
    pub fn issue_from_newest_root(&self) {
        self.shared.change(|state| state.authority.issue_from_newest());
    }

    /// Last step: the roots before the one that issues are trusted no more.
    pub fn retire_older_roots(&self) {
        self.shared.change(|state| state.authority.retire_older());
    }

    /// All trusted roots, PEM.
    pub fn roots(&self) -> String {
        self.shared.state().authority.bundle()
    }

    /// A certificate for a proxy that does not ask for one itself, from now and for a day.
    pub fn issue(&self, identity: &str) -> Result<IssuedFiles> {
        let key = KeyPair::generate()?;
        let now = SystemTime::now();
        let not_after = now + Duration::from_secs(24 * 60 * 60);
        let wanted = Wanted { identity, key: &key, not_before: now - BACKDATE, not_after };
        let mut chain = self.shared.change(|state| state.authority.issue(&wanted))?;
        let roots = chain.pop().context("the bundle comes last")?;
        Ok(IssuedFiles {
            identity: identity.to_owned(),
            key: key.serialize_pem(),
            chain: chain.concat(),
            roots,
        })
    }

    /// Revokes every certificate issued to the identity so far. Takes effect for whoever reads the
    /// [lists](Self::write_revocations) then.
    pub fn revoke(&self, identity: &str) -> Result<()> {
        let count = self.shared.change(|state| state.authority.revoke(identity));
        ensure!(count > 0, "nothing has been issued to {identity}, or all is revoked already");
        Ok(())
    }

    /// Forgets all revocations.
    pub fn reinstate(&self) {
        self.shared.change(|state| state.authority.reinstate());
    }

    /// Writes the revocation lists of all issuers to a file, PEM, in one step.
    pub fn write_revocations(&self, path: &Path) -> Result<()> {
        let lists = self.shared.change(|state| state.authority.revocation_lists())?;
        crate::control_plane::replace(path, &lists)
    }

    /// Requests with a good token so far, in order.
    pub fn requests(&self) -> Vec<CaRequest> {
        self.shared.state().ca.requests.clone()
    }

    /// Identities asked for so far.
    pub fn identities(&self) -> BTreeSet<String> {
        let state = self.shared.state();
        state.ca.requests.iter().map(|request| request.identity.clone()).collect()
    }

    /// When the newest certificate of the identity expires.
    pub fn expiry(&self, identity: &str) -> Result<SystemTime> {
        let expiry = self.shared.state().authority.expiry(identity);
        expiry.with_context(|| format!("nothing has been issued to {identity}"))
    }

    /// How many certificates the identity has been given.
    pub fn issued_to(&self, identity: &str) -> usize {
        issued(&self.shared.state().ca.requests, identity)
    }

    /// Waits until the identity has been given `count` certificates in all.
    pub fn wait_issued(&self, identity: &str, count: usize) -> Result<()> {
        let what = format!("{count} certificates to be issued to {identity}");
        self.shared.wait_for(&what, |state| (issued(&state.ca.requests, identity) >= count).then_some(()))
    }

    /// Waits until `select` gives something for all requests so far.
    pub fn wait_requests<T>(
        &self,
        what: &str,
        mut select: impl FnMut(&[CaRequest]) -> Option<T>,
    ) -> Result<T> {
        self.shared.wait_for(what, |state| select(&state.ca.requests))
    }

    /// How many requests are being answered.
    pub fn in_flight(&self) -> usize {
        self.shared.state().ca.in_flight
    }

    /// How many requests have been answered at one time at most.
    pub fn most_in_flight(&self) -> usize {
        self.shared.state().ca.most_in_flight
    }
}

fn issued(requests: &[CaRequest], identity: &str) -> usize {
    let granted = |request: &&CaRequest| request.identity == identity && request.outcome == Some(Code::Ok);
    requests.iter().filter(granted).count()
}
