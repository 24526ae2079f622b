package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"shoal/subjects"
)

// State is how the connection is.
type State struct {
	Connected bool
	// Server is the one that it leads to.
	Server string
	// Err is why there is none, Refused whether that is because a server does not take the credentials.
	Err     error
	Refused bool
}

// patience is how long a server has to take a connection.
const patience = 10 * time.Second

// reachTimeout is how long a server that is there may take to answer a ping.
const reachTimeout = 3 * time.Second

// dialer lets a context end an attempt.
type dialer func(network, address string) (net.Conn, error)

// Dial implements nats.CustomDialer.
func (d dialer) Dial(network, address string) (net.Conn, error) { return d(network, address) }

// failure is why there is no connection, as it was last logged: the same reason again is not worth a line.
type failure struct {
	mu     sync.Mutex
	reason string
}

// isNew takes a reason, "" for a connection.
func (f *failure) isNew(reason string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	same := f.reason == reason
	f.reason = reason
	return !same
}

// refusal reports whether an error means that a server does not take the credentials. To a new connection servers do not say
// whether they are expired or revoked.
func refusal(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) ||
		errors.Is(err, nats.ErrAccountAuthExpired)
}

// connect makes the connection, with patience; it is nil when ctx ends before. The client would retry the first attempt
// by itself, but then tell of a refusal in it once at most.
func (l *Link) connect(ctx context.Context) *nats.Conn {
	for {
		nc, err := nats.Connect(l.urls(), l.options(ctx)...)
		if err == nil {
			l.nc.Store(nc)
			l.onConnect(nc, "connected")
			return nc
		}
		if ctx.Err() != nil {
			return nil
		}
		l.onFailure(err)
		t := time.NewTimer(l.wait(0))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-l.redial:
			t.Stop()
		case <-t.C:
		}
	}
}

// urls are the servers, as the client takes them.
func (l *Link) urls() string {
	if s := l.servers.Load(); s != nil {
		return strings.Join(*s, ",")
	}
	return l.cfg.URL
}

func (l *Link) options(ctx context.Context) []nats.Option {
	opts := []nats.Option{
		nats.Name("shoal-agent " + l.cfg.Host),
		// Both are read anew at each attempt.
		nats.UserCredentials(l.cfg.Creds),
		func(o *nats.Options) error {
			o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS13}
			if l.cfg.Roots != nil {
				o.Secure, o.RootCAsCB = true, l.cfg.Roots
			}
			return nil
		},
		nats.CustomInboxPrefix(subjects.Inbox(l.cfg.Host)),
		// A server that is away or refuses us, for however long, is no reason to give up: hosts live on alone.
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.CustomReconnectDelay(l.wait),
		nats.Timeout(patience),
		nats.SetCustomDialer(dialer(func(network, address string) (net.Conn, error) {
			return (&net.Dialer{Timeout: patience}).DialContext(ctx, network, address)
		})),
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		// Nothing is buffered for a server that is away: the newest of each status is sent when it is back.
		nats.ReconnectBufSize(-1),
		nats.ReconnectHandler(func(nc *nats.Conn) { l.onConnect(nc, "reconnected") }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			l.report.pause()
			if ctx.Err() == nil {
				l.log.Warn().Err(err).Msg("disconnected from the controller")
				l.tell(State{Err: err, Refused: refusal(err)})
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			if ctx.Err() == nil {
				l.onFailure(err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if refusal(err) {
				l.onFailure(err)
				return
			}
			l.log.Warn().Err(err).Msg("connection error")
		}),
	}
	return append(opts, l.cfg.Options...)
}

// wait is how long to wait before all servers are tried again. The client's count of attempts says nothing about why they failed.
func (l *Link) wait(int) time.Duration {
	if nc := l.nc.Load(); nc != nil {
		// No handler is told of a server that could be dialled and whose certificate does not hold.
		if err := nc.LastError(); err != nil && !refusal(err) {
			l.onFailure(err)
		}
	}
	d := l.cfg.ReconnectWait
	for range l.refusals.Load() - 1 {
		if d *= 2; d >= l.cfg.RefusedWait {
			d = l.cfg.RefusedWait - l.cfg.RefusedWait/4
			return d + rand.N(l.cfg.RefusedWait/4+1)
		}
	}
	return d + rand.N(l.cfg.ReconnectJitter+1)
}

func (l *Link) onConnect(nc *nats.Conn, how string) {
	l.refusals.Store(0)
	l.failure.isNew("")
	server := nc.ConnectedUrlRedacted()
	l.log.Info().Str("server", server).Msg(how)
	l.tell(State{Connected: true, Server: server})
	select {
	case l.connected <- struct{}{}:
	default:
	}
}

// onFailure takes why an attempt to connect failed.
func (l *Link) onFailure(err error) {
	refused := refusal(err)
	if refused {
		l.refusals.Add(1)
	} else {
		l.refusals.Store(0)
	}
	if l.failure.isNew(err.Error()) {
		l.log.Warn().Err(err).Msg("not connected to the controller")
	}
	l.tell(State{Err: err, Refused: refused})
}

func (l *Link) tell(s State) {
	if l.cfg.OnState != nil {
		l.telling.Lock()
		defer l.telling.Unlock()
		l.cfg.OnState(s)
	}
}

// Redial tries to connect at once where there is no connection: credentials or certificates are newer now.
func (l *Link) Redial() {
	l.refusals.Store(0)
	if nc := l.nc.Load(); nc == nil {
		select {
		case l.redial <- struct{}{}:
		default:
		}
	} else if !nc.IsConnected() {
		// It fails only for a connection that Run has closed.
		_ = nc.ForceReconnect()
	}
}

// Reach asks the server for a sign of life and names it. A connection that gives none is given up for a new one, for which a later call
// may have more luck.
func (l *Link) Reach(ctx context.Context) (string, error) {
	nc := l.nc.Load()
	if nc == nil || !nc.IsConnected() {
		l.Redial()
		return "", errors.New("ask the controller for a sign of life: not connected")
	}
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	server := nc.ConnectedUrlRedacted()
	if err := nc.FlushWithContext(ctx); err != nil {
		_ = nc.ForceReconnect() // it fails only for a connection that Run has closed
		return "", fmt.Errorf("ask %s for a sign of life: %w", server, err)
	}
	return server, nil
}

// SetServers takes other servers for the next attempt to connect. It must not be called from OnState.
func (l *Link) SetServers(urls []string) error {
	l.servers.Store(&urls)
	nc := l.nc.Load()
	if nc == nil {
		return nil
	}
	if err := nc.SetServerPool(urls); err != nil {
		return fmt.Errorf("take other servers: %w", err)
	}
	return nil
}
