use super::*;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(150);

/// What a server has received, piece by piece; it echoes everything.
async fn echo() -> (SocketAddr, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    let _ = seen.send(buffer[..read].to_vec());
                    let _ = stream.write_all(&buffer[..read]).await;
                }
            });
        }
    });
    (address, received)
}

async fn start() -> (Proxy, mpsc::UnboundedReceiver<Vec<u8>>) {
    let (target, received) = echo().await;
    (Proxy::start(target).await.unwrap(), received)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.unwrap()
}

async fn exchange(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(text).await?;
    hear(stream).await
}

async fn hear(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 1024];
    let read = timeout(LONG, stream.read(&mut buffer)).await??;
    Ok(buffer[..read].to_vec())
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    timeout(SHORT, stream.read(&mut [0; 1])).await.is_err()
}

#[tokio::test]
async fn doubled_answers_come_twice() {
    let (proxy, _received) = start().await;
    let mut client = connect(&proxy).await;
    proxy.set(Toward::Client, Flow::Double);
    assert_eq!(exchange(&mut client, b"hello").await.unwrap(), b"hellohello");
    proxy.heal();
    assert_eq!(exchange(&mut client, b"again").await.unwrap(), b"again");
    proxy.set(Toward::Client, Flow::Double);
    client.shutdown().await.unwrap();
    assert_eq!(hear(&mut client).await.unwrap(), b"");
}

#[tokio::test]
async fn bytes_pass_both_ways() {
    let (proxy, _received) = start().await;
    let mut client = connect(&proxy).await;
    assert_eq!(exchange(&mut client, b"hello").await.unwrap(), b"hello");
    assert_eq!((proxy.accepted(), proxy.held()), (1, 0));
    client.shutdown().await.unwrap();
    assert_eq!(hear(&mut client).await.unwrap(), b"");
}

#[tokio::test]
async fn a_cut_resets_what_is_open_and_what_comes() {
    let (proxy, _received) = start().await;
    let mut client = connect(&proxy).await;
    exchange(&mut client, b"hello").await.unwrap();
    proxy.cut();
    assert_eq!(hear(&mut client).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let mut second = connect(&proxy).await;
    assert!(exchange(&mut second, b"hello").await.is_err());
    proxy.heal();
    let mut third = connect(&proxy).await;
    assert_eq!(exchange(&mut third, b"again").await.unwrap(), b"again");
    proxy.reset();
    assert!(hear(&mut third).await.is_err());
    assert_eq!(exchange(&mut connect(&proxy).await, b"new").await.unwrap(), b"new");
}

#[tokio::test]
async fn a_delay_is_kept_and_keeps_the_order() {
    let (proxy, _received) = start().await;
    let mut client = connect(&proxy).await;
    proxy.set(Toward::Client, Flow::Delay(Duration::from_millis(200)));
    let sent = Instant::now();
    client.write_all(b"one").await.unwrap();
    assert_eq!(hear(&mut client).await.unwrap(), b"one");
    assert!(sent.elapsed() >= Duration::from_millis(200));
    proxy.set(Toward::Client, Flow::Delay(LONG * 100));
    client.write_all(b"two").await.unwrap();
    assert!(is_silent(&mut client).await);
    proxy.heal();
    assert_eq!(hear(&mut client).await.unwrap(), b"two");
}

#[tokio::test]
async fn answers_can_vanish_while_requests_arrive() {
    let (proxy, mut received) = start().await;
    let mut client = connect(&proxy).await;
    proxy.set(Toward::Client, Flow::Swallow);
    client.write_all(b"hello").await.unwrap();
    assert_eq!(timeout(LONG, received.recv()).await.unwrap().unwrap(), b"hello");
    assert!(is_silent(&mut client).await);
    // What has lost bytes does not go on as if it had not.
    proxy.heal();
    assert!(hear(&mut client).await.is_err());
}

#[tokio::test]
async fn requests_can_vanish() {
    let (proxy, mut received) = start().await;
    let mut client = connect(&proxy).await;
    let mut idle = connect(&proxy).await;
    exchange(&mut idle, b"idle").await.unwrap();
    received.recv().await.unwrap();
    proxy.set(Toward::Server, Flow::Swallow);
    client.write_all(b"hello").await.unwrap();
    assert!(timeout(SHORT, received.recv()).await.is_err());
    proxy.heal();
    assert!(hear(&mut client).await.is_err());
    assert_eq!(exchange(&mut idle, b"whole").await.unwrap(), b"whole");
}

#[tokio::test]
async fn a_held_request_arrives_late_though_its_client_has_gone() {
    let (proxy, mut received) = start().await;
    let mut first = connect(&proxy).await;
    exchange(&mut first, b"open").await.unwrap();
    assert_eq!(received.recv().await.unwrap(), b"open");
    proxy.hold();
    first.write_all(b"late").await.unwrap();
    while proxy.held() < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(first);

    let mut second = connect(&proxy).await;
    assert_eq!(exchange(&mut second, b"overtakes").await.unwrap(), b"overtakes");
    assert_eq!(received.recv().await.unwrap(), b"overtakes");
    assert!(timeout(SHORT, received.recv()).await.is_err());

    proxy.let_through();
    assert_eq!(timeout(LONG, received.recv()).await.unwrap().unwrap(), b"late");
    assert_eq!(proxy.held(), 0);
}

#[tokio::test]
async fn a_held_request_arrives_late_though_its_client_was_reset() {
    let (proxy, mut received) = start().await;
    let mut first = connect(&proxy).await;
    exchange(&mut first, b"open").await.unwrap();
    received.recv().await.unwrap();
    proxy.hold();
    first.write_all(b"late").await.unwrap();
    while proxy.held() < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    reset(&first);
    drop(first);
    tokio::time::sleep(SHORT).await;
    proxy.let_through();
    assert_eq!(timeout(LONG, received.recv()).await.unwrap().unwrap(), b"late");
}

#[tokio::test]
async fn a_connection_is_cut_after_so_many_bytes() {
    let (proxy, mut received) = start().await;
    let mut client = connect(&proxy).await;
    exchange(&mut client, b"open").await.unwrap();
    received.recv().await.unwrap();
    proxy.cut_after(Toward::Server, 3);
    client.write_all(b"hello").await.unwrap();
    assert!(hear(&mut client).await.is_err() || hear(&mut client).await.is_err());
    assert_eq!(received.recv().await.unwrap(), b"hel");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_for_the_client() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target = listener.local_addr().unwrap();
    drop(listener);
    let proxy = Proxy::start(target).await.unwrap();
    let mut client = connect(&proxy).await;
    assert!(exchange(&mut client, b"hello").await.is_err());
    // Whoever drops the proxy drops its connections.
    drop(proxy);
    assert!(hear(&mut client).await.map_or(true, |text| text.is_empty()));
}
