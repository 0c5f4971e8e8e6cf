//! The certificate store against an authority whose every answer the test gives.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::future::{self, Future};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::{
    CertificateError, CertificateStore, IdentityState, IssueError, IssueFuture, IssuedChain, Issuer, LocalCa,
    PrivateKey, RequestError, RequestOutcome, SpiffeId, StoreOptions, Tls, TlsOptions,
    WorkloadCertificateError, peer_identity, unnamed_server,
};
use support::handshake::connect;
use support::{Authority, CLIENT, MINUTE, SERVER, id, validity};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// The authority's side of one call.
struct Call {
    identity: SpiffeId,
    csr: String,
    answer: oneshot::Sender<Result<IssuedChain, IssueError>>,
}

/// Hands every call to the test.
struct Scripted(mpsc::UnboundedSender<Call>);

impl Issuer for Scripted {
    fn issue<'a>(&'a self, identity: &'a SpiffeId, csr_pem: &'a str) -> IssueFuture<'a> {
        let (answer, answered) = oneshot::channel();
        let call = Call { identity: identity.clone(), csr: csr_pem.to_owned(), answer };
        self.0.send(call).ok();
        Box::pin(async { answered.await.unwrap_or_else(|_| Err(IssueError::Unavailable("hung up".into()))) })
    }
}

impl Call {
    fn succeed_trusting(self, authority: &Authority, roots: &[&str]) {
        let request = rcgen::CertificateSigningRequestParams::from_pem(&self.csr).unwrap();
        let leaf = authority.sign(&[self.identity.as_str()], &request.public_key, |_| {});
        self.answer.send(Ok(IssuedChain(authority.elements(leaf, roots)))).unwrap();
    }

    fn succeed(self, authority: &Authority) {
        let now = SystemTime::now();
        self.succeed_between(authority, now - MINUTE, now + 60 * MINUTE);
    }

    fn succeed_between(self, authority: &Authority, not_before: SystemTime, not_after: SystemTime) {
        let request = rcgen::CertificateSigningRequestParams::from_pem(&self.csr).unwrap();
        let change = |params: &mut rcgen::CertificateParams| validity(params, not_before, not_after);
        let leaf = authority.sign(&[self.identity.as_str()], &request.public_key, change);
        self.answer.send(Ok(IssuedChain(authority.elements(leaf, &[&authority.root])))).unwrap();
    }

    fn fail(self) {
        self.answer.send(Err(IssueError::Unavailable("down".into()))).unwrap();
    }
}

struct Bench {
    store: CertificateStore,
    calls: mpsc::UnboundedReceiver<Call>,
    authority: Authority,
    driver: tokio::task::JoinHandle<()>,
}

impl Bench {
    fn new(options: StoreOptions) -> Self {
        let (sender, calls) = mpsc::unbounded_channel();
        let tls = Tls::new(TlsOptions::default());
        let (store, driver) = CertificateStore::new(Arc::new(Scripted(sender)), tls, options);
        let driver = tokio::spawn(driver.run(future::pending()));
        Self { store, calls, authority: Authority::root("root"), driver }
    }

    async fn call(&mut self) -> Call {
        soon(self.calls.recv()).await.unwrap()
    }

    /// Asks for a certificate in a task that is certain to be waiting when this returns.
    async fn wait_for(
        &self,
        uri: &str,
    ) -> tokio::task::JoinHandle<Result<Arc<identity::WorkloadCertificate>, CertificateError>> {
        let (store, identity) = (self.store.clone(), id(uri));
        let (polled, waiting) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut certificate = Box::pin(store.certificate(&identity));
            let mut polled = Some(polled);
            future::poll_fn(|context| {
                let poll = certificate.as_mut().poll(context);
                polled.take().map(|polled| polled.send(()));
                poll
            })
            .await
        });
        soon(waiting).await.unwrap();
        task
    }
}

/// Long enough for a busy machine, short enough for a test that fails.
async fn soon<T>(event: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), event).await.expect("the event did not happen")
}

fn default_bench() -> Bench {
    Bench::new(StoreOptions::default())
}

#[tokio::test]
async fn all_who_wait_share_one_request_and_its_certificate() {
    let mut bench = default_bench();
    let waiting = [bench.wait_for(CLIENT).await, bench.wait_for(CLIENT).await, bench.wait_for(CLIENT).await];
    bench.call().await.succeed(&bench.authority);
    let mut certificates = Vec::new();
    for waiter in waiting {
        certificates.push(soon(waiter).await.unwrap().unwrap());
    }
    assert!(certificates.windows(2).all(|pair| Arc::ptr_eq(&pair[0], &pair[1])));
    assert!(Arc::ptr_eq(&certificates[0], &bench.store.current(&id(CLIENT)).unwrap()));
    assert!(Arc::ptr_eq(&certificates[0], &soon(bench.store.certificate(&id(CLIENT))).await.unwrap()));
    assert!(bench.calls.try_recv().is_err());
}

#[tokio::test]
async fn a_failure_is_told_to_those_who_wait_and_to_those_who_come_right_after() {
    let mut bench = default_bench();
    let waiting = bench.wait_for(CLIENT).await;
    bench.call().await.fail();
    let first = soon(waiting).await.unwrap().unwrap_err();
    let CertificateError::Unavailable(first) = first else { panic!("{first:?}") };
    assert!(matches!(*first, RequestError::Issue(IssueError::Unavailable(_))));
    let second = soon(bench.store.certificate(&id(CLIENT))).await.unwrap_err();
    let CertificateError::Unavailable(second) = second else { panic!("{second:?}") };
    assert!(Arc::ptr_eq(&first, &second));

    // The retry happens without anybody asking.
    bench.call().await.succeed(&bench.authority);
    let waiting = bench.wait_for(SERVER).await;
    bench.call().await.succeed(&bench.authority);
    soon(waiting).await.unwrap().unwrap();
    assert!(bench.store.current(&id(CLIENT)).is_some());
}

#[tokio::test]
async fn a_prefetched_certificate_is_there_without_anybody_waiting() {
    let mut bench = default_bench();
    bench.store.prefetch(&id(CLIENT));
    let call = bench.call().await;
    assert_eq!(call.identity, id(CLIENT));
    let waiting = bench.wait_for(CLIENT).await;
    call.succeed(&bench.authority);
    soon(waiting).await.unwrap().unwrap();
    bench.store.prefetch(&id(CLIENT));
    let waiting = bench.wait_for(SERVER).await;
    assert_eq!(bench.call().await.identity, id(SERVER), "what is there is not fetched again");
    drop(waiting);
}

#[tokio::test]
async fn those_who_wait_for_a_forgotten_identity_are_told() {
    let mut bench = default_bench();
    let waiting = bench.wait_for(CLIENT).await;
    let call = bench.call().await;
    bench.store.forget(&id(CLIENT));
    assert!(matches!(soon(waiting).await.unwrap(), Err(CertificateError::Forgotten)));
    assert!(bench.store.identities().is_empty());

    call.succeed(&bench.authority);
    let other = bench.wait_for(SERVER).await;
    bench.call().await.succeed(&bench.authority);
    soon(other).await.unwrap().unwrap();
    assert!(bench.store.current(&id(CLIENT)).is_none(), "the late answer was dropped");
}

#[tokio::test]
async fn forgetting_removes_a_certificate_at_once() {
    let mut bench = default_bench();
    let waiting = bench.wait_for(CLIENT).await;
    bench.call().await.succeed(&bench.authority);
    soon(waiting).await.unwrap().unwrap();
    bench.store.forget(&id(CLIENT));
    assert!(bench.store.current(&id(CLIENT)).is_none());
    assert!(bench.store.identities().is_empty());
    bench.wait_for(CLIENT).await;
    assert_eq!(bench.call().await.identity, id(CLIENT), "it is requested anew when wanted again");
}

#[tokio::test]
async fn a_waiter_that_goes_away_does_not_take_the_request_with_it() {
    let mut bench = default_bench();
    let waiting = bench.wait_for(CLIENT).await;
    let call = bench.call().await;
    waiting.abort();
    assert!(soon(waiting).await.unwrap_err().is_cancelled());
    let second = bench.wait_for(CLIENT).await;
    call.succeed(&bench.authority);
    soon(second).await.unwrap().unwrap();
}

#[tokio::test]
async fn without_its_driver_the_store_answers_that_it_is_closed_and_keeps_what_it_has() {
    let mut bench = default_bench();
    let waiting = bench.wait_for(SERVER).await;
    bench.call().await.succeed(&bench.authority);
    soon(waiting).await.unwrap().unwrap();

    let waiting = bench.wait_for(CLIENT).await;
    bench.driver.abort();
    assert!(matches!(soon(waiting).await.unwrap(), Err(CertificateError::Closed)));
    assert!(matches!(soon(bench.store.certificate(&id(CLIENT))).await, Err(CertificateError::Closed)));
    soon(bench.store.certificate(&id(SERVER))).await.unwrap();
}

#[tokio::test]
async fn the_driver_ends_at_shutdown_and_abandons_its_requests() {
    let (sender, mut calls) = mpsc::unbounded_channel();
    let tls = Tls::new(TlsOptions::default());
    let (store, driver) = CertificateStore::new(Arc::new(Scripted(sender)), tls, StoreOptions::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let driver = tokio::spawn(driver.run(async { stopped.await.unwrap() }));
    store.prefetch(&id(CLIENT));
    let call = soon(calls.recv()).await.unwrap();
    stop.send(()).unwrap();
    soon(driver).await.unwrap();
    assert!(call.answer.is_closed());
    assert!(matches!(store.certificate(&id(CLIENT)).await, Err(CertificateError::Closed)));
}

#[tokio::test]
async fn an_authority_that_never_answers_is_given_up_on() {
    let mut bench =
        Bench::new(StoreOptions { request_deadline: Duration::from_millis(50), ..StoreOptions::default() });
    let waiting = bench.wait_for(CLIENT).await;
    let _unanswered = bench.call().await;
    let error = soon(waiting).await.unwrap().unwrap_err();
    let CertificateError::Unavailable(error) = error else { panic!("{error:?}") };
    assert!(matches!(*error, RequestError::Deadline));
}

#[tokio::test]
async fn what_does_not_fit_the_request_is_not_served() {
    let mut bench = default_bench();
    let waiting = bench.wait_for(CLIENT).await;
    let call = bench.call().await;
    let leaf = bench.authority.sign(&[CLIENT], &PrivateKey::generate().unwrap(), |_| {});
    let chain = bench.authority.elements(leaf, &[&bench.authority.root]);
    call.answer.send(Ok(IssuedChain(chain))).unwrap();
    let error = soon(waiting).await.unwrap().unwrap_err();
    let CertificateError::Unavailable(error) = error else { panic!("{error:?}") };
    assert!(matches!(*error, RequestError::Certificate(WorkloadCertificateError::Key(_))), "{error:?}");
    assert!(bench.store.current(&id(CLIENT)).is_none());
}

#[tokio::test]
async fn no_more_calls_run_at_once_than_allowed() {
    let mut bench = Bench::new(StoreOptions { concurrency: 4, ..StoreOptions::default() });
    for number in 0..12 {
        bench.store.prefetch(&SpiffeId::new("td", "ns", &number.to_string()).unwrap());
    }
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(bench.call().await);
    }
    for _ in 4..12 {
        // The driver has had every chance to start a fifth: it ran until it could do no more.
        tokio::task::yield_now().await;
        assert!(bench.calls.try_recv().is_err());
        open.remove(0).succeed(&bench.authority);
        open.push(bench.call().await);
    }
}

#[tokio::test]
async fn identities_are_listed_with_their_state_in_the_order_of_their_names() {
    let mut bench = Bench::new(StoreOptions { concurrency: 1, ..StoreOptions::default() });
    let name = |account: &str| SpiffeId::new("td", "ns", account).unwrap();
    bench.store.prefetch(&name("c"));
    bench.call().await.fail();
    bench.store.prefetch(&name("b"));
    bench.call().await.succeed(&bench.authority);
    bench.store.prefetch(&name("a"));
    let _running = bench.call().await;
    let listed = bench.store.identities();
    let [
        (a, IdentityState::Initializing),
        (b, IdentityState::Available(held)),
        (c, IdentityState::Unavailable(_)),
    ] = &listed[..]
    else {
        panic!("{listed:?}")
    };
    assert_eq!([a, b, c], [&name("a"), &name("b"), &name("c")]);
    assert_eq!(held.identity(), b);
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_expires_and_kept_meanwhile() {
    let mut bench = default_bench();
    let waiting = bench.wait_for(CLIENT).await;
    let now = SystemTime::now();
    let second = Duration::from_secs(1);
    bench.call().await.succeed_between(&bench.authority, now - 2 * second, now + 8 * second);
    let old = soon(waiting).await.unwrap().unwrap();

    let renewal = bench.call().await;
    assert!(SystemTime::now() < old.not_after());
    assert!(Arc::ptr_eq(&old, &bench.store.current(&id(CLIENT)).unwrap()));
    renewal.fail();
    let retry = bench.call().await;
    assert!(Arc::ptr_eq(&old, &soon(bench.store.certificate(&id(CLIENT))).await.unwrap()));
    retry.succeed(&bench.authority);
    soon(async {
        while Arc::ptr_eq(&old, &bench.store.current(&id(CLIENT)).unwrap()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_expired_certificate_is_never_served() {
    let mut bench = default_bench();
    let waiting = bench.wait_for(CLIENT).await;
    let now = SystemTime::now();
    let second = Duration::from_secs(1);
    bench.call().await.succeed_between(&bench.authority, now - 2 * second, now + 3 * second);
    let certificate = soon(waiting).await.unwrap().unwrap();
    while !certificate.is_expired(SystemTime::now()) {
        bench.call().await.fail();
    }
    assert!(bench.store.current(&id(CLIENT)).is_none());
    let listed = bench.store.identities();
    assert!(!matches!(listed[..], [(_, IdentityState::Available(_))]), "{listed:?}");
    let waiting = bench.wait_for(CLIENT).await;
    if !waiting.is_finished() {
        bench.call().await.fail();
    }
    assert!(matches!(soon(waiting).await.unwrap(), Err(CertificateError::Unavailable(_))));
}

#[tokio::test]
async fn an_expired_certificate_is_not_served_by_a_store_whose_driver_is_stuck() {
    let (sender, mut calls) = mpsc::unbounded_channel();
    let tls = Tls::new(TlsOptions::default());
    let (store, driver) = CertificateStore::new(Arc::new(Scripted(sender)), tls, StoreOptions::default());
    let authority = Authority::root("root");
    store.prefetch(&id(CLIENT));
    let mut driver = Box::pin(driver.run(future::pending()));
    let obtained = async {
        let now = SystemTime::now();
        let second = Duration::from_secs(1);
        calls.recv().await.unwrap().succeed_between(&authority, now - second, now + 2 * second);
        while store.current(&id(CLIENT)).is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = &mut driver => panic!("the driver ended"),
        () = soon(obtained) => {}
    }
    // From here on nobody polls the driver.
    let held = store.current(&id(CLIENT)).unwrap();
    while !held.is_expired(SystemTime::now()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(store.current(&id(CLIENT)).is_none());
    let waiting = timeout(Duration::from_millis(100), store.certificate(&id(CLIENT))).await;
    assert!(waiting.is_err(), "{waiting:?}");
    drop(driver);
}

#[tokio::test]
async fn requests_are_counted_by_outcome_and_the_last_error_of_each_identity_is_known() {
    let mut bench = default_bench();
    let counted = |store: &CertificateStore| {
        store.requests().into_iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>()
    };
    assert_eq!(counted(&bench.store), []);
    let waiting = bench.wait_for(CLIENT).await;
    bench.call().await.succeed(&bench.authority);
    soon(waiting).await.unwrap().unwrap();
    let waiting = bench.wait_for(SERVER).await;
    bench.call().await.answer.send(Err(IssueError::Unauthorized("who?".into()))).unwrap();
    assert!(soon(waiting).await.unwrap().is_err());
    assert_eq!(counted(&bench.store), [(RequestOutcome::Issued, 1), (RequestOutcome::Unauthorized, 1)]);
    let errors = bench.store.last_errors();
    let [(identity, error)] = &errors[..] else { panic!("{errors:?}") };
    assert_eq!((identity, error.outcome()), (&id(SERVER), RequestOutcome::Unauthorized));

    let retry = bench.call().await;
    retry.answer.send(Ok(IssuedChain(vec!["-".into(), "-".into()]))).unwrap();
    bench.call().await.succeed(&bench.authority);
    soon(async {
        while bench.store.current(&id(SERVER)).is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(bench.store.last_errors().len(), 0);
    assert!(counted(&bench.store).contains(&(RequestOutcome::Unusable, 1)));
}

/// Renews all certificates of `bench`, which its authority signs now, and waits until they are in use.
async fn rotate(bench: &mut Bench, authority: &Authority, roots: &[&str]) {
    let before = [CLIENT, SERVER].map(|uri| bench.store.current(&id(uri)).unwrap());
    bench.store.renew_all(Duration::from_millis(1));
    for _ in 0..2 {
        bench.call().await.succeed_trusting(authority, roots);
    }
    soon(async {
        for old in before {
            while Arc::ptr_eq(&old, &bench.store.current(old.identity()).unwrap()) {
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    assert!(bench.calls.try_recv().is_err(), "each was renewed once");
}

#[tokio::test]
async fn while_the_root_is_replaced_certificates_of_neighbouring_generations_reach_each_other() {
    let (old, new) = (Authority::root("root"), Authority::root("root"));
    let (old_root, new_root) = (&old.root[..], &new.root[..]);
    let both = [old_root, new_root];
    let mut bench = default_bench();
    for uri in [CLIENT, SERVER] {
        let waiting = bench.wait_for(uri).await;
        bench.call().await.succeed_trusting(&old, &[old_root]);
        soon(waiting).await.unwrap().unwrap();
    }
    let held = |bench: &Bench| [CLIENT, SERVER].map(|uri| bench.store.current(&id(uri)).unwrap());
    // Trust is extended, then the issuer changes, then the old root goes.
    let mut generations = vec![held(&bench)];
    for (authority, roots) in [(&old, &both[..]), (&new, &both[..]), (&new, &[new_root][..])] {
        rotate(&mut bench, authority, roots).await;
        generations.push(held(&bench));
    }
    for (one, other) in [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3)] {
        for (client, server) in [(one, other), (other, one)] {
            let (client, server) = (&generations[client][0], &generations[server][1]);
            connect(client, server, &[SERVER]).succeeded();
        }
    }
    // Without the overlap they would not, so the above does not hold by accident.
    let apart = connect(&generations[0][0], &generations[2][1], &[SERVER]);
    assert!(apart.client_error.is_some());
}

#[tokio::test]
async fn a_renewal_that_fails_while_the_root_is_replaced_leaves_the_old_certificate_in_use() {
    let mut bench = default_bench();
    let waiting = bench.wait_for(CLIENT).await;
    bench.call().await.succeed(&bench.authority);
    let old = soon(waiting).await.unwrap().unwrap();
    bench.store.renew_all(Duration::ZERO);
    bench.call().await.fail();
    let retry = bench.call().await;
    assert!(Arc::ptr_eq(&old, &soon(bench.store.certificate(&id(CLIENT))).await.unwrap()));
    retry.succeed(&bench.authority);
}

#[tokio::test]
async fn many_threads_and_identities_make_one_call_each() {
    let mut bench = default_bench();
    let (done, mut finished) = mpsc::unbounded_channel();
    let use_all = |store: CertificateStore| async move {
        for number in 0..100 {
            let identity = SpiffeId::new("td", "ns", &number.to_string()).unwrap();
            assert_eq!(store.certificate(&identity).await.unwrap().identity(), &identity);
        }
    };
    for _ in 0..8 {
        let (store, done) = (bench.store.clone(), done.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(use_all(store));
            done.send(()).unwrap();
        });
    }
    for _ in 0..100 {
        bench.call().await.succeed(&bench.authority);
    }
    for _ in 0..8 {
        soon(finished.recv()).await.unwrap();
    }
    assert!(bench.calls.try_recv().is_err());
    assert_eq!(bench.store.identities().len(), 100);
}

#[tokio::test]
async fn workloads_with_certificates_of_the_local_authority_reach_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let authority = LocalCa::open(dir.path(), LocalCa::DEFAULT_LIFETIME).unwrap();
        let tls = Tls::new(TlsOptions::default());
        let (store, driver) = CertificateStore::new(Arc::new(authority), tls, StoreOptions::default());
        tokio::spawn(driver.run(future::pending()));
        store
    };
    // Two nodes that share nothing but the directory.
    let (here, there) = (open(), open());
    let client = soon(here.certificate(&id(CLIENT))).await.unwrap();
    let server = soon(there.certificate(&id(SERVER))).await.unwrap();

    let (near, far) = tokio::io::duplex(4096);
    let connect = tokio_rustls::TlsConnector::from(client.client_config(&id(SERVER).into()));
    let accept = tokio_rustls::TlsAcceptor::from(server.server_config());
    let (near, far) =
        soon(async { tokio::try_join!(connect.connect(unnamed_server(), near), accept.accept(far)) })
            .await
            .unwrap();
    assert_eq!(peer_identity(near.get_ref().1.peer_certificates().unwrap()), Ok(id(SERVER)));
    assert_eq!(peer_identity(far.get_ref().1.peer_certificates().unwrap()), Ok(id(CLIENT)));
}
