package journal

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// bus is an embedded NATS server with fsync, which can be stopped and started again on its directory.
type bus struct {
	t    testing.TB
	dir  string
	port int
	srv  *server.Server
}

func newBus(t testing.TB) *bus {
	t.Helper()
	b := &bus{t: t, dir: t.TempDir(), port: -1}
	b.start()
	t.Cleanup(b.stop)
	return b
}

func (b *bus) start() {
	b.t.Helper()
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: b.port, JetStream: true, StoreDir: b.dir, SyncAlways: true, NoSigs: true, NoLog: true,
	})
	if err != nil {
		b.t.Fatalf("make server: %v", err)
	}
	srv.Start()
	if !srv.ReadyForConnections(30 * time.Second) {
		b.t.Fatal("the server does not start")
	}
	b.srv, b.port = srv, srv.Addr().(*net.TCPAddr).Port
}

func (b *bus) stop() {
	if b.srv != nil {
		b.srv.Shutdown()
		b.srv.WaitForShutdown()
		b.srv = nil
	}
}

// connect makes a client that reconnects quickly.
func (b *bus) connect() jetstream.JetStream { b.t.Helper(); return b.connectTo(b.srv.ClientURL()) }

func (b *bus) connectTo(url string) jetstream.JetStream {
	b.t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0), nats.ReconnectBufSize(-1))
	if err != nil {
		b.t.Fatalf("connect: %v", err)
	}
	b.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		b.t.Fatalf("make JetStream client: %v", err)
	}
	return js
}

// journal makes the stream where it is missing, and opens it.
func (b *bus) journal(ctx context.Context, js jetstream.JetStream) *Journal {
	b.t.Helper()
	if _, err := js.CreateOrUpdateStream(ctx, Config()); err != nil {
		b.t.Fatalf("make stream: %v", err)
	}
	j, err := Open(ctx, js, zerolog.Nop())
	if err != nil {
		b.t.Fatal(err)
	}
	return j
}

// lossyProxy passes connections on to the server, and can lose what the server says.
type lossyProxy struct {
	l     net.Listener
	to    string
	wg    sync.WaitGroup
	mu    sync.Mutex
	cut   bool
	n     int
	conns map[net.Conn]struct{}
}

func newLossyProxy(t testing.TB, to string) *lossyProxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &lossyProxy{l: l, to: to, conns: map[net.Conn]struct{}{}}
	p.wg.Go(p.run)
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *lossyProxy) url() string { return "nats://" + p.l.Addr().String() }

// cutAnswers drops the next bytes that come from the server, once, and the connection with them.
func (p *lossyProxy) cutAnswers() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
}

func (p *lossyProxy) cuts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

func (p *lossyProxy) run() {
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		srv, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[srv] = struct{}{}, struct{}{}
		p.mu.Unlock()
		p.wg.Go(func() { _, _ = io.Copy(srv, client); _ = srv.Close() })
		p.wg.Go(func() {
			defer client.Close()
			buf := make([]byte, 64<<10)
			for {
				n, err := srv.Read(buf)
				if err != nil {
					return
				}
				p.mu.Lock()
				cut := p.cut
				if cut {
					p.cut = false
					p.n++
				}
				p.mu.Unlock()
				if cut {
					_ = srv.Close()
					return
				}
				if _, err := client.Write(buf[:n]); err != nil {
					return
				}
			}
		})
	}
}
