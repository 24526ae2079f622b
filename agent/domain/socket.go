package domain

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
)

// How long libvirt may take. Starting a machine takes a third of a second on an idle host and minutes on a drowning one.
const (
	dialTimeout  = 5 * time.Second
	readTimeout  = 15 * time.Second
	writeTimeout = 60 * time.Second
	startTimeout = 3 * time.Minute

	// libvirtd works on 5 requests of a client at once (max_client_requests) and queues the rest behind them. A few that
	// hang with their storage must not stop the others, hence several connections.
	perConn  = 4
	maxConns = 8
)

// Socket is a Libvirt behind libvirtd's unix socket. It connects when it is needed and again after libvirtd went away.
type Socket struct {
	path string

	mu    sync.Mutex
	conns []*conn
	// dialing counts connections that are being made.
	dialing int
	closed  bool
}

type conn struct {
	l    *golibvirt.Libvirt
	raw  net.Conn
	busy int
}

// NewSocket uses libvirtd at a unix socket, such as /run/libvirt/libvirt-sock. It does not connect yet.
func NewSocket(path string) *Socket { return &Socket{path: path} }

// Close drops the connections. Calls that are under way fail.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, c := range s.conns {
		_ = c.raw.Close()
	}
	s.conns = nil
	return nil
}

// onceDialer hands out one connection, which we keep: closing it is the only way to end a request.
type onceDialer struct{ net.Conn }

func (d onceDialer) Dial() (net.Conn, error) { return d.Conn, nil }

func (s *Socket) dial(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "unix", s.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	l := golibvirt.NewWithDialer(onceDialer{raw})
	var connected error
	done := make(chan struct{})
	go func() {
		defer close(done)
		connected = l.ConnectToURI(golibvirt.QEMUSystem)
	}()
	select {
	case <-done:
		err = connected
	case <-ctx.Done():
		// A stopped libvirtd takes connections and says nothing.
		_ = raw.Close()
		<-done
		err = ctx.Err()
	}
	if err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("%w at %s: %w", ErrUnreachable, s.path, err)
	}
	return &conn{l: l, raw: raw}, nil
}

// take finds the least busy live connection, or makes one.
func (s *Socket) take(ctx context.Context) (*conn, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, fmt.Errorf("%w: closed", ErrUnreachable)
	}
	var best *conn
	live := s.conns[:0]
	for _, c := range s.conns {
		if !c.l.IsConnected() {
			_ = c.raw.Close()
			continue
		}
		live = append(live, c)
		if best == nil || c.busy < best.busy {
			best = c
		}
	}
	s.conns = live
	if best != nil && (best.busy < perConn || len(s.conns)+s.dialing >= maxConns) {
		best.busy++
		s.mu.Unlock()
		return best, nil
	}
	s.dialing++
	s.mu.Unlock()

	c, err := s.dial(ctx)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.dialing--
	if err != nil {
		return nil, err
	}
	if s.closed {
		_ = c.raw.Close()
		return nil, fmt.Errorf("%w: closed", ErrUnreachable)
	}
	c.busy = 1
	s.conns = append(s.conns, c)
	return c, nil
}

func (s *Socket) release(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.busy--
}

// call runs one request. The library's requests know no context: one that is given up goes on in the background, and
// keeps its place in its connection until libvirt answers.
func call[T any](ctx context.Context, s *Socket, limit time.Duration, f func(*golibvirt.Libvirt) (T, error)) (T, error) {
	var zero T
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for attempt := 0; ; attempt++ {
		c, err := s.take(ctx)
		if err != nil {
			return zero, err
		}
		type result struct {
			v   T
			err error
		}
		done := make(chan result, 1)
		go func() {
			defer s.release(c)
			v, err := f(c.l)
			done <- result{v, err}
		}()
		select {
		case r := <-done:
			// EINVAL is the library's word for a connection that had been lost before the request left.
			if errors.Is(r.err, syscall.EINVAL) && attempt == 0 {
				continue
			}
			return r.v, translate(r.err)
		case <-ctx.Done():
			return zero, fmt.Errorf("%w: no answer: %w", ErrBusy, ctx.Err())
		}
	}
}

func do(ctx context.Context, s *Socket, limit time.Duration, f func(*golibvirt.Libvirt) error) error {
	_, err := call(ctx, s, limit, func(l *golibvirt.Libvirt) (struct{}, error) { return struct{}{}, f(l) })
	return err
}

// translate puts libvirt's error under the sentinel that says what to do about it, and keeps libvirt's text.
func translate(err error) error {
	var e golibvirt.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
	case errors.Is(err, golibvirt.ErrInterrupted), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EPIPE),
		errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	default:
		return err
	}
	switch golibvirt.ErrorNumber(e.Code) {
	case golibvirt.ErrNoDomain:
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case golibvirt.ErrOperationInvalid:
		return fmt.Errorf("%w: %w", ErrState, err)
	case golibvirt.ErrDomExist:
		return fmt.Errorf("%w: %w", ErrExists, err)
	case golibvirt.ErrOperationUnsupported, golibvirt.ErrConfigUnsupported, golibvirt.ErrNoSupport:
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	case golibvirt.ErrOperationTimeout:
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case golibvirt.ErrOperationFailed:
		if strings.Contains(e.Message, "already exists with uuid") || strings.Contains(e.Message, "is already defined with uuid") {
			return fmt.Errorf("%w: %w", ErrExists, err)
		}
	case golibvirt.ErrInternalError:
		if strings.Contains(e.Message, "timed out") || strings.Contains(e.Message, "monitor socket did not show up") {
			return fmt.Errorf("%w: %w", ErrBusy, err)
		}
	}
	return err
}

// ref is how requests name a domain: libvirt looks at the UUID only.
func ref(id string) (golibvirt.Domain, error) {
	u, err := uuid.Parse(id)
	if err != nil {
		return golibvirt.Domain{}, fmt.Errorf("parse domain id %q: %w", id, err)
	}
	return golibvirt.Domain{Name: id, UUID: golibvirt.UUID(u), ID: -1}, nil
}

// on runs a request about one domain.
func (s *Socket) on(ctx context.Context, id string, limit time.Duration, f func(*golibvirt.Libvirt, golibvirt.Domain) error) error {
	d, err := ref(id)
	if err != nil {
		return err
	}
	return do(ctx, s, limit, func(l *golibvirt.Libvirt) error { return f(l, d) })
}

// List implements Libvirt. Two requests, whatever the number of domains: states come with the statistics, and which
// domains are persistent is told by asking for those and for the others.
func (s *Socket) List(ctx context.Context) ([]Info, error) {
	return call(ctx, s, readTimeout, func(l *golibvirt.Libvirt) ([]Info, error) {
		var infos []Info
		for _, flag := range []golibvirt.ConnectGetAllDomainStatsFlags{
			golibvirt.ConnectGetAllDomainsStatsPersistent, golibvirt.ConnectGetAllDomainsStatsTransient,
		} {
			records, err := l.ConnectGetAllDomainStats(nil, uint32(golibvirt.DomainStatsState), uint32(flag))
			if err != nil {
				return nil, err
			}
			for _, r := range records {
				info := Info{
					ID: uuid.UUID(r.Dom.UUID).String(), Name: r.Dom.Name,
					Persistent: flag == golibvirt.ConnectGetAllDomainsStatsPersistent,
				}
				for _, p := range r.Params {
					v, ok := p.Value.I.(int32)
					switch {
					case !ok:
					case p.Field == golibvirt.DomainStatsStateState:
						info.State = State(v)
					case p.Field == golibvirt.DomainStatsStateReason:
						info.Reason = int(v)
					}
				}
				infos = append(infos, info)
			}
		}
		return infos, nil
	})
}

// Lookup implements Libvirt.
func (s *Socket) Lookup(ctx context.Context, id string) (Info, error) {
	d, err := ref(id)
	if err != nil {
		return Info{}, err
	}
	return call(ctx, s, readTimeout, func(l *golibvirt.Libvirt) (Info, error) {
		found, err := l.DomainLookupByUUID(d.UUID)
		if err != nil {
			return Info{}, err
		}
		state, reason, err := l.DomainGetState(found, 0)
		if err != nil {
			return Info{}, err
		}
		persistent, err := l.DomainIsPersistent(found)
		if err != nil {
			return Info{}, err
		}
		return Info{ID: id, Name: found.Name, State: State(state), Reason: int(reason), Persistent: persistent == 1}, nil
	})
}

// XML implements Libvirt.
func (s *Socket) XML(ctx context.Context, id string, live bool) (string, error) {
	d, err := ref(id)
	if err != nil {
		return "", err
	}
	var flags golibvirt.DomainXMLFlags
	if !live {
		flags = golibvirt.DomainXMLInactive
	}
	return call(ctx, s, readTimeout, func(l *golibvirt.Libvirt) (string, error) { return l.DomainGetXMLDesc(d, flags) })
}

// Define implements Libvirt.
func (s *Socket) Define(ctx context.Context, xml string) error {
	return do(ctx, s, writeTimeout, func(l *golibvirt.Libvirt) error {
		_, err := l.DomainDefineXMLFlags(xml, 0)
		return err
	})
}

// SetMark implements Libvirt.
func (s *Socket) SetMark(ctx context.Context, id, element string) error {
	return s.on(ctx, id, writeTimeout, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		return l.DomainSetMetadata(d, int32(golibvirt.DomainMetadataElement), golibvirt.OptString{element},
			golibvirt.OptString{markPrefix}, golibvirt.OptString{markSpace}, golibvirt.DomainAffectConfig)
	})
}

// Undefine implements Libvirt. What libvirt keeps beside the definition goes, too; disks stay.
func (s *Socket) Undefine(ctx context.Context, id string) error {
	const flags = golibvirt.DomainUndefineManagedSave | golibvirt.DomainUndefineSnapshotsMetadata |
		golibvirt.DomainUndefineNvram | golibvirt.DomainUndefineCheckpointsMetadata
	return s.on(ctx, id, writeTimeout, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		return l.DomainUndefineFlags(d, flags)
	})
}

// Start implements Libvirt.
func (s *Socket) Start(ctx context.Context, id string, paused bool) error {
	var flags uint32
	if paused {
		flags = uint32(golibvirt.DomainStartPaused)
	}
	return s.on(ctx, id, startTimeout, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		_, err := l.DomainCreateWithFlags(d, flags)
		return err
	})
}

// Shutdown implements Libvirt.
func (s *Socket) Shutdown(ctx context.Context, id string) error {
	return s.on(ctx, id, writeTimeout, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		return l.DomainShutdownFlags(d, golibvirt.DomainShutdownAcpiPowerBtn)
	})
}

// Destroy implements Libvirt.
func (s *Socket) Destroy(ctx context.Context, id string) error {
	return s.on(ctx, id, writeTimeout, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		return l.DomainDestroyFlags(d, 0)
	})
}

// Suspend implements Libvirt.
func (s *Socket) Suspend(ctx context.Context, id string) error {
	return s.on(ctx, id, writeTimeout, func(l *golibvirt.Libvirt, d golibvirt.Domain) error { return l.DomainSuspend(d) })
}

// Resume implements Libvirt.
func (s *Socket) Resume(ctx context.Context, id string) error {
	return s.on(ctx, id, writeTimeout, func(l *golibvirt.Libvirt, d golibvirt.Domain) error { return l.DomainResume(d) })
}

// Reset implements Libvirt.
func (s *Socket) Reset(ctx context.Context, id string) error {
	return s.on(ctx, id, writeTimeout, func(l *golibvirt.Libvirt, d golibvirt.Domain) error { return l.DomainReset(d, 0) })
}

// Attach implements Libvirt.
func (s *Socket) Attach(ctx context.Context, id, device string) error {
	return s.on(ctx, id, writeTimeout, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		return l.DomainAttachDeviceFlags(d, device, uint32(golibvirt.DomainDeviceModifyLive))
	})
}

// Detach implements Libvirt.
func (s *Socket) Detach(ctx context.Context, id, device string) error {
	return s.on(ctx, id, writeTimeout, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		return l.DomainDetachDeviceFlags(d, device, uint32(golibvirt.DomainDeviceModifyLive))
	})
}

// Versions are those of libvirt and QEMU, "9.0.0".
func (s *Socket) Versions(ctx context.Context) (libvirt, qemu string, err error) {
	type pair struct{ libvirt, qemu uint64 }
	p, err := call(ctx, s, readTimeout, func(l *golibvirt.Libvirt) (p pair, err error) {
		if p.libvirt, err = l.ConnectGetLibVersion(); err != nil {
			return p, err
		}
		p.qemu, err = l.ConnectGetVersion()
		return p, err
	})
	if err != nil {
		return "", "", err
	}
	text := func(v uint64) string { return fmt.Sprintf("%d.%d.%d", v/1000000, v/1000%1000, v%1000) }
	return text(p.libvirt), text(p.qemu), nil
}

// Events implements Libvirt, on a connection of its own.
func (s *Socket) Events(ctx context.Context, ready func(), changed func(Event)) error {
	c, err := s.dial(ctx)
	if err != nil {
		return err
	}
	// Closing the connection ends the library's goroutines, and with them the channels that are read below.
	stop := context.AfterFunc(ctx, func() { _ = c.raw.Close() })
	defer stop()
	defer c.raw.Close()

	var wg sync.WaitGroup
	defer func() {
		_ = c.raw.Close()
		wg.Wait()
	}()
	lost := make(chan struct{}, 8)
	for _, event := range []golibvirt.DomainEventID{
		golibvirt.DomainEventIDLifecycle, golibvirt.DomainEventIDReboot, golibvirt.DomainEventIDDeviceRemoved,
		golibvirt.DomainEventIDDeviceRemovalFailed, golibvirt.DomainEventIDDeviceAdded, golibvirt.DomainEventIDIoErrorReason,
	} {
		// Not ctx: the library would unsubscribe with a request of its own, on a connection that is closed anyway.
		events, err := c.l.SubscribeEvents(context.WithoutCancel(ctx), event, nil)
		if err != nil {
			return fmt.Errorf("subscribe to events: %w", translate(err))
		}
		wg.Go(func() {
			for e := range events {
				if e, ok := translateEvent(e); ok {
					changed(e)
				}
			}
			lost <- struct{}{}
		})
	}
	ready()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-lost:
		return fmt.Errorf("%w: connection lost", ErrUnreachable)
	case <-c.l.Disconnected():
		return fmt.Errorf("%w: connection lost", ErrUnreachable)
	}
}

// translateEvent is what an event of the library says.
func translateEvent(e any) (Event, bool) {
	var d golibvirt.Domain
	var event Event
	switch e := e.(type) {
	case *golibvirt.DomainEventCallbackLifecycleMsg:
		d = e.Msg.Dom
	case *golibvirt.DomainEventCallbackRebootMsg:
		d = e.Msg.Dom
	case *golibvirt.DomainEventCallbackDeviceRemovedMsg:
		d = e.Msg.Dom
	case *golibvirt.DomainEventCallbackDeviceRemovalFailedMsg:
		d = e.Dom
	case *golibvirt.DomainEventCallbackDeviceAddedMsg:
		d = e.Dom
	case *golibvirt.DomainEventCallbackIOErrorReasonMsg:
		d, event.IOError = e.Msg.Dom, e.Msg.Reason
	default:
		return Event{}, false
	}
	event.ID = uuid.UUID(d.UUID).String()
	return event, true
}
