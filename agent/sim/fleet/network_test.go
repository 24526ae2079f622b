package fleet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// bus is the NATS server, which comes and goes.
type bus struct {
	mu  sync.Mutex
	srv *server.Server
}

func (b *bus) set(srv *server.Server) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.srv = srv
}

func (b *bus) get() *server.Server {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.srv
}

var (
	errTimeout = &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	errRefused = &net.OpError{Op: "dial", Err: errors.New("connection refused")}
)

// cable is the network between one party and the server: it implements nats.InProcessConnProvider and nats.CustomDialer.
type cable struct {
	bus *bus

	mu sync.Mutex
	// lost says which way nothing arrives.
	lostUp, lostDown bool
	conns            map[*wire]struct{}
}

func newCable(b *bus) *cable { return &cable{bus: b, conns: map[*wire]struct{}{}} }

// InProcessConn dials.
func (c *cable) InProcessConn() (net.Conn, error) {
	c.mu.Lock()
	lost := c.lostUp || c.lostDown
	c.mu.Unlock()
	if lost {
		// At once: the client holds its lock meanwhile, and the fake clock stands still while anybody waits for a lock.
		return nil, errTimeout
	}
	srv := c.bus.get()
	if srv == nil {
		return nil, errRefused
	}
	return c.wire(srv.InProcessConn())
}

// Dial implements nats.CustomDialer.
func (c *cable) Dial(network, addr string) (net.Conn, error) {
	c.mu.Lock()
	lost := c.lostUp || c.lostDown
	c.mu.Unlock()
	if lost {
		return nil, errTimeout
	}
	return c.wire(net.DialTimeout(network, addr, 2*time.Second))
}

func (c *cable) wire(conn net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: conn, cable: c, since: time.Now()}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns[w] = struct{}{}
	return w, nil
}

// cut makes everything get lost from now on, one way or both. The connections of this moment never recover: what was lost on
// them is lost, and both ends find out by their pings.
func (c *cable) cut(up, down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lostUp, c.lostDown = up, down
	for w := range c.conns {
		w.lose(up, down)
	}
}

func (c *cable) heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lostUp, c.lostDown = false, false
}

// reset breaks the connections, as both ends notice at once.
func (c *cable) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.conns {
		_ = w.Conn.Close()
	}
}

// wire is one connection.
type wire struct {
	net.Conn
	cable *cable

	since time.Time

	mu               sync.Mutex
	lostUp, lostDown bool
}

// lose breaks a connection, or closes one that is just being made, for the same reason.
func (w *wire) lose(up, down bool) {
	if time.Now().Equal(w.since) {
		_ = w.Conn.Close()
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lostUp, w.lostDown = w.lostUp || up, w.lostDown || down
}

func (w *wire) lost() (up, down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lostUp, w.lostDown
}

// Write is lost without a word where the network is cut.
func (w *wire) Write(b []byte) (int, error) {
	if up, _ := w.lost(); up {
		return len(b), nil
	}
	return w.Conn.Write(b)
}

// Read swallows what is lost.
func (w *wire) Read(b []byte) (int, error) {
	for {
		n, err := w.Conn.Read(b)
		if _, down := w.lost(); !down || err != nil {
			return n, err
		}
	}
}

// Close does not reach the other end of a cut connection: that finds out by itself.
func (w *wire) Close() error {
	w.cable.mu.Lock()
	delete(w.cable.conns, w)
	w.cable.mu.Unlock()
	if up, _ := w.lost(); !up {
		return w.Conn.Close()
	}
	go func() {
		_ = w.SetDeadline(time.Time{})
		_, _ = io.Copy(io.Discard, w.Conn)
		_ = w.Conn.Close()
	}()
	return nil
}

// web is where controllers serve images, by address.
type web struct {
	mu        sync.Mutex
	listeners map[string]*listener
}

// listen is a listener at an address that nobody listens at.
func (n *web) listen(addr string) *listener {
	l := &listener{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[addr] = l
	return l
}

// DialContext is for an http.Transport.
func (n *web) DialContext(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[addr]
	n.mu.Unlock()
	if l == nil {
		return nil, errRefused
	}
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.closed:
		return nil, errRefused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type listener struct {
	addr   string
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr {
	a, _ := net.ResolveTCPAddr("tcp", l.addr)
	return a
}
