package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// SFTPConfig is what is needed to log in to an SFTP server. Both files are needed: a server whose key is not known could be
// anybody, and would get all private keys or hand out others.
type SFTPConfig struct {
	// KeyFile is a private key without a passphrase, in OpenSSH's format.
	KeyFile string
	// KnownHosts is a file as ssh-keyscan writes it.
	KnownHosts string
}

// sshTimeout bounds connecting and logging in.
const sshTimeout = 20 * time.Second

// sftpTarget is a directory on a server.
type sftpTarget struct {
	user, addr, dir string
	cfg             SFTPConfig
}

func newSFTP(u *url.URL, cfg SFTPConfig) (Target, error) {
	if _, has := u.User.Password(); has {
		return nil, errors.New("backup target: a password must not stand in it: it would be shown and logged; give a key with --backup-sftp-key")
	}
	if u.User.Username() == "" || u.Hostname() == "" || path.Clean("/"+u.Path) == "/" {
		return nil, fmt.Errorf("backup target: %q is not sftp://user@host/directory", u.Redacted())
	}
	if cfg.KeyFile == "" || cfg.KnownHosts == "" {
		return nil, errors.New("backup target: an SFTP server needs --backup-sftp-key FILE and --backup-sftp-known-hosts FILE (as ssh-keyscan writes it)")
	}
	port := u.Port()
	if port == "" {
		port = "22"
	}
	return &sftpTarget{user: u.User.Username(), addr: net.JoinHostPort(u.Hostname(), port), dir: path.Clean(u.Path), cfg: cfg}, nil
}

func (t *sftpTarget) String() string { return "sftp://" + t.user + "@" + t.addr + t.dir }

// session is a connection for one piece of work.
type session struct {
	*sftp.Client
	conn *ssh.Client
	stop func() bool
}

func (s *session) Close() error {
	s.stop()
	return errors.Join(s.Client.Close(), s.conn.Close())
}

// dial logs in. The session ends with ctx.
func (t *sftpTarget) dial(ctx context.Context) (_ *session, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("connect to %s: %w", t, err)
		}
	}()
	pem, err := os.ReadFile(t.cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	key, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", t.cfg.KeyFile, err)
	}
	check, err := knownhosts.New(t.cfg.KnownHosts)
	if err != nil {
		return nil, fmt.Errorf("read known hosts: %w", err)
	}
	raw, err := (&net.Dialer{Timeout: sshTimeout}).DialContext(ctx, "tcp", t.addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	if err := raw.SetDeadline(time.Now().Add(sshTimeout)); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	conn, chans, reqs, err := ssh.NewClientConn(raw, t.addr, &ssh.ClientConfig{
		User: t.user, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: check, HostKeyAlgorithms: hostKeyAlgorithms(check, t.addr),
	})
	if err != nil {
		stop()
		_ = raw.Close()
		if unknown, ok := errors.AsType[*knownhosts.KeyError](err); ok {
			if len(unknown.Want) == 0 {
				return nil, fmt.Errorf("the server's key is not in %s: compare its fingerprint, then add what ssh-keyscan prints: %w", t.cfg.KnownHosts, err)
			}
			return nil, fmt.Errorf("the server's key is another one than in %s: nothing was sent; find out why before you change that file: %w", t.cfg.KnownHosts, err)
		}
		return nil, err
	}
	client := ssh.NewClient(conn, chans, reqs)
	if err := raw.SetDeadline(time.Time{}); err != nil {
		stop()
		return nil, errors.Join(err, client.Close())
	}
	s, err := sftp.NewClient(client)
	if err != nil {
		stop()
		return nil, errors.Join(err, client.Close())
	}
	return &session{s, client, stop}, nil
}

// hostKeyAlgorithms are those that the known hosts have a key for: the server would otherwise choose one of its other keys,
// which would then look like a wrong one.
func hostKeyAlgorithms(check ssh.HostKeyCallback, addr string) []string {
	var known *knownhosts.KeyError
	if err := check(addr, &net.TCPAddr{IP: net.IPv4zero}, noKey{}); !errors.As(err, &known) {
		return nil
	}
	var out []string
	for _, k := range known.Want {
		if t := k.Key.Type(); t == ssh.KeyAlgoRSA {
			out = append(out, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		} else {
			out = append(out, t)
		}
	}
	return out
}

// noKey is nobody's key: asking for it tells which ones are known.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return []byte("none") }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("it is nobody's key") }

func (t *sftpTarget) List(ctx context.Context) ([]File, error) {
	s, err := t.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	entries, err := s.ReadDirContext(ctx, t.dir)
	if err != nil {
		return nil, fmt.Errorf("list backups in %s: %w", t, err)
	}
	var out []File
	for _, e := range entries {
		if e.Mode().IsRegular() {
			out = append(out, File{e.Name(), e.Size()})
		}
	}
	return out, nil
}

func (t *sftpTarget) Write(ctx context.Context, name string, fill func(io.Writer) error) error {
	s, err := t.dial(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	final, tmp := path.Join(t.dir, name), path.Join(t.dir, "."+name+partial)
	if _, err := s.Lstat(final); err == nil {
		return fmt.Errorf("write %s in %s: %w", name, t, fs.ErrExist)
	}
	f, err := s.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return fmt.Errorf("write %s in %s: %w", name, t, err)
	}
	err = errors.Join(f.Chmod(0o600), fill(f))
	if _, can := s.HasExtension("fsync@openssh.com"); can && err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s in %s: %w", name, t, err), s.Remove(tmp))
	}
	rename := s.Rename
	if _, can := s.HasExtension("posix-rename@openssh.com"); can {
		rename = s.PosixRename
	}
	if err := rename(tmp, final); err != nil {
		return errors.Join(fmt.Errorf("write %s in %s: %w", name, t, err), s.Remove(tmp))
	}
	return nil
}

// remoteFile ends its session with itself.
type remoteFile struct {
	*sftp.File
	s *session
}

func (f *remoteFile) Close() error { return errors.Join(f.File.Close(), f.s.Close()) }

func (t *sftpTarget) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	s, err := t.dial(ctx)
	if err != nil {
		return nil, err
	}
	f, err := s.Open(path.Join(t.dir, name))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s in %s: %w", name, t, err), s.Close())
	}
	return &remoteFile{f, s}, nil
}

func (t *sftpTarget) Remove(ctx context.Context, name string) error {
	s, err := t.dial(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Remove(path.Join(t.dir, name)); err != nil {
		return fmt.Errorf("remove %s in %s: %w", name, t, err)
	}
	return nil
}

func (t *sftpTarget) Tidy(ctx context.Context, age time.Duration) error {
	s, err := t.dial(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	entries, err := s.ReadDirContext(ctx, t.dir)
	if err != nil {
		return fmt.Errorf("tidy %s: %w", t, err)
	}
	var errs []error
	for _, e := range entries {
		if isPartial(e.Name()) && time.Since(e.ModTime()) >= age {
			errs = append(errs, s.Remove(path.Join(t.dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
