/* nfsfuse URL DIR [FUSE OPTIONS]: mounts an NFS export through FUSE, for kernels without an NFS client.
 *
 * URL is libnfs's, such as nfs://10.77.0.1/export?version=3. Like a hard mount, it waits for a server that does not
 * answer. One operation runs at a time: a libnfs context is not thread safe, and tests need no speed.
 */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <nfsc/libnfs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

static struct nfs_context *nfs;

static struct nfsfh *handle(struct fuse_file_info *fi)
{
	return fi ? (struct nfsfh *)(uintptr_t)fi->fh : NULL;
}

static int op_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
	struct nfs_stat_64 s;
	int rc = handle(fi) ? nfs_fstat64(nfs, handle(fi), &s) : nfs_lstat64(nfs, path, &s);

	if (rc < 0)
		return rc;
	*st = (struct stat){
		.st_ino = s.nfs_ino,
		.st_mode = s.nfs_mode,
		.st_nlink = s.nfs_nlink,
		.st_uid = s.nfs_uid,
		.st_gid = s.nfs_gid,
		.st_rdev = s.nfs_rdev,
		.st_size = s.nfs_size,
		.st_blksize = s.nfs_blksize,
		.st_blocks = s.nfs_blocks,
		.st_atim = {s.nfs_atime, s.nfs_atime_nsec},
		.st_mtim = {s.nfs_mtime, s.nfs_mtime_nsec},
		.st_ctim = {s.nfs_ctime, s.nfs_ctime_nsec},
	};
	return 0;
}

static int op_readdir(const char *path, void *buf, fuse_fill_dir_t fill, off_t off, struct fuse_file_info *fi,
		      enum fuse_readdir_flags flags)
{
	struct nfsdir *dir;
	struct nfsdirent *entry;
	int rc = nfs_opendir(nfs, path, &dir);

	(void)off, (void)fi, (void)flags;
	if (rc < 0)
		return rc;
	while ((entry = nfs_readdir(nfs, dir)))
		fill(buf, entry->name, NULL, 0, 0);
	nfs_closedir(nfs, dir);
	return 0;
}

static int op_open(const char *path, struct fuse_file_info *fi)
{
	struct nfsfh *fh;
	int rc = nfs_open(nfs, path, fi->flags & (O_ACCMODE | O_APPEND | O_TRUNC | O_SYNC), &fh);

	if (rc < 0)
		return rc;
	fi->fh = (uintptr_t)fh;
	return 0;
}

static int op_create(const char *path, mode_t mode, struct fuse_file_info *fi)
{
	struct nfsfh *fh;
	int rc = nfs_open2(nfs, path, (fi->flags & (O_ACCMODE | O_EXCL | O_TRUNC)) | O_CREAT, mode & 07777, &fh);

	if (rc < 0)
		return rc;
	fi->fh = (uintptr_t)fh;
	return 0;
}

static int op_release(const char *path, struct fuse_file_info *fi)
{
	(void)path;
	return nfs_close(nfs, handle(fi));
}

/* The server may move less than was asked for; FUSE takes a short count for the end of the file. */
static int op_read(const char *path, char *buf, size_t size, off_t off, struct fuse_file_info *fi)
{
	size_t done = 0;

	(void)path;
	while (done < size) {
		int n = nfs_pread(nfs, handle(fi), off + done, size - done, buf + done);
		if (n < 0)
			return n;
		if (n == 0)
			break;
		done += n;
	}
	return done;
}

static int op_write(const char *path, const char *buf, size_t size, off_t off, struct fuse_file_info *fi)
{
	size_t done = 0;

	(void)path;
	while (done < size) {
		int n = nfs_pwrite(nfs, handle(fi), off + done, size - done, (char *)buf + done);
		if (n < 0)
			return n;
		done += n;
	}
	return done;
}

static int op_fsync(const char *path, int datasync, struct fuse_file_info *fi)
{
	(void)path, (void)datasync;
	return nfs_fsync(nfs, handle(fi));
}

static int op_truncate(const char *path, off_t size, struct fuse_file_info *fi)
{
	return handle(fi) ? nfs_ftruncate(nfs, handle(fi), size) : nfs_truncate(nfs, path, size);
}

static int op_chown(const char *path, uid_t uid, gid_t gid, struct fuse_file_info *fi)
{
	struct stat st;
	int rc = op_getattr(path, &st, fi);

	if (rc < 0)
		return rc;
	return nfs_chown(nfs, path, uid == (uid_t)-1 ? st.st_uid : uid, gid == (gid_t)-1 ? st.st_gid : gid);
}

static int op_utimens(const char *path, const struct timespec ts[2], struct fuse_file_info *fi)
{
	struct timeval tv[2];
	struct stat st;
	int i, rc = op_getattr(path, &st, fi);

	if (rc < 0)
		return rc;
	for (i = 0; i < 2; i++) {
		struct timespec t = ts[i];
		if (t.tv_nsec == UTIME_OMIT)
			t = i ? st.st_mtim : st.st_atim;
		else if (t.tv_nsec == UTIME_NOW)
			clock_gettime(CLOCK_REALTIME, &t);
		tv[i] = (struct timeval){t.tv_sec, t.tv_nsec / 1000};
	}
	return nfs_utimes(nfs, path, tv);
}

static int op_rename(const char *from, const char *to, unsigned int flags)
{
	return flags ? -EINVAL : nfs_rename(nfs, from, to);
}

static int op_chmod(const char *path, mode_t mode, struct fuse_file_info *fi)
{
	(void)fi;
	return nfs_chmod(nfs, path, mode & 07777);
}

static int op_mkdir(const char *path, mode_t mode) { return nfs_mkdir2(nfs, path, mode & 07777); }
static int op_unlink(const char *path) { return nfs_unlink(nfs, path); }
static int op_rmdir(const char *path) { return nfs_rmdir(nfs, path); }
static int op_symlink(const char *target, const char *path) { return nfs_symlink(nfs, target, path); }
static int op_link(const char *from, const char *to) { return nfs_link(nfs, from, to); }
static int op_readlink(const char *path, char *buf, size_t size) { return nfs_readlink(nfs, path, buf, size); }
static int op_statfs(const char *path, struct statvfs *st) { return nfs_statvfs(nfs, path, st); }

/* Other hosts write to the export: cache nothing about names and sizes. */
static void *op_init(struct fuse_conn_info *conn, struct fuse_config *cfg)
{
	(void)conn;
	cfg->use_ino = 1;
	cfg->attr_timeout = cfg->entry_timeout = cfg->negative_timeout = 0;
	return NULL;
}

static const struct fuse_operations ops = {
	.init = op_init,
	.getattr = op_getattr,
	.readdir = op_readdir,
	.open = op_open,
	.create = op_create,
	.release = op_release,
	.read = op_read,
	.write = op_write,
	.fsync = op_fsync,
	.truncate = op_truncate,
	.chown = op_chown,
	.utimens = op_utimens,
	.rename = op_rename,
	.chmod = op_chmod,
	.mkdir = op_mkdir,
	.unlink = op_unlink,
	.rmdir = op_rmdir,
	.symlink = op_symlink,
	.link = op_link,
	.readlink = op_readlink,
	.statfs = op_statfs,
};

int main(int argc, char **argv)
{
	struct nfs_url *url;

	if (argc < 3) {
		fprintf(stderr, "usage: nfsfuse URL DIR [FUSE OPTIONS]\n");
		return 1;
	}
	nfs = nfs_init_context();
	url = nfs ? nfs_parse_url_dir(nfs, argv[1]) : NULL;
	alarm(60); /* a server that is not there must not hold mount(8) for ever; SIGALRM ends us */
	if (!url || nfs_mount(nfs, url->server, url->path) < 0) {
		fprintf(stderr, "mount.nfs: %s\n", nfs_get_error(nfs));
		return 32; /* mount(8)'s "mount failure" */
	}
	alarm(0);
	/* The connection survives the fork into the background; the parent does nothing more with it. */
	argv[1] = argv[0];
	return fuse_main(argc - 1, argv + 1, &ops, NULL);
}
