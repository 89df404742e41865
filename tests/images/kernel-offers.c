/* Uses what the guest's kernel is to offer and prints a line for each: `ok WHAT`, or `no WHAT: WHY`.
 * In a network namespace of its own, as root with all capabilities; what it makes goes with it. */
#define _GNU_SOURCE
/* Before the kernel's headers, which then leave out what both define. */
#include <net/if.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/genetlink.h>
#include <linux/if_alg.h>
#include <linux/ip_vs.h>
#include <linux/loop.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nf_tables_compat.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/ipset/ip_set.h>
#include <linux/netfilter_bridge/ebtables.h>
#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/tls.h>
#include <linux/xfrm.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#ifndef SOL_TLS
#define SOL_TLS 282
#endif

static void say(const char *what, const char *name, int error)
{
	if (error)
		printf("no %s %s: %s\n", what, name, error > 0 ? strerror(error) : "no answer");
	else
		printf("ok %s %s\n", what, name);
}

/* --- netlink messages --- */

static char message[8192];

static struct nlmsghdr *header(void)
{
	return (struct nlmsghdr *)message;
}

static void *room(size_t size)
{
	void *place = message + NLMSG_ALIGN(header()->nlmsg_len);

	header()->nlmsg_len = NLMSG_ALIGN(header()->nlmsg_len) + size;
	return place;
}

static void begin(int type, int flags, const void *body, size_t size)
{
	memset(message, 0, sizeof(message));
	header()->nlmsg_len = NLMSG_HDRLEN;
	header()->nlmsg_type = type;
	header()->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
	memcpy(room(size), body, size);
}

static struct nlattr *attribute(int type, const void *data, size_t size)
{
	struct nlattr *made = room(NLA_HDRLEN + size);

	made->nla_type = type;
	made->nla_len = NLA_HDRLEN + size;
	memcpy((char *)made + NLA_HDRLEN, data, size);
	return made;
}

static void word(int type, uint32_t value)
{
	attribute(type, &value, sizeof(value));
}

static void text(int type, const char *value)
{
	attribute(type, value, strlen(value) + 1);
}

static struct nlattr *nest(int type)
{
	return attribute(type | NLA_F_NESTED, "", 0);
}

static void end(struct nlattr *nested)
{
	nested->nla_len = message + header()->nlmsg_len - (char *)nested;
}

/* Sends what is in `bytes` and gives the error of the answer; 0 for none, or for an answer of another kind. */
static int send_bytes(int family, const void *bytes, size_t size)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, family);
	struct timeval limit = { .tv_sec = 20 };
	char answer[8192];
	int result = -1;
	ssize_t got;

	if (fd < 0)
		return errno;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (send(fd, bytes, size, 0) < 0)
		result = errno;
	else if ((got = recv(fd, answer, sizeof(answer), 0)) >= (ssize_t)NLMSG_HDRLEN) {
		struct nlmsghdr *first = (struct nlmsghdr *)answer;

		result = first->nlmsg_type == NLMSG_ERROR ? -((struct nlmsgerr *)NLMSG_DATA(first))->error : 0;
	}
	close(fd);
	return result;
}

static int request(int family)
{
	return send_bytes(family, message, header()->nlmsg_len);
}

/* --- links and queueing --- */

static int add_link(const char *kind, int key, uint32_t value)
{
	struct ifinfomsg info = { 0 };
	struct nlattr *outer, *data;

	begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &info, sizeof(info));
	outer = nest(IFLA_LINKINFO);
	text(IFLA_INFO_KIND, kind);
	if (key) {
		data = nest(IFLA_INFO_DATA);
		word(key, value);
		end(data);
	}
	end(outer);
	return request(NETLINK_ROUTE);
}

static void links(void)
{
	static const struct {
		const char *kind;
		int key;
		uint32_t value;
	} kinds[] = {
		{ "dummy" },	    { "bridge" },	 { "ifb" },		{ "bond" },
		{ "wireguard" },    { "ipip" },		 { "gre" },		{ "gretap" },
		{ "sit" },	    { "ip6tnl" },	 { "ip6gre" },		{ "netkit" },
		{ "vxlan", 1, 77 }, { "geneve", 1, 77 }, { "xfrm", 2, 77 },	{ "vrf", 1, 77 },
	};
	struct if_nameindex *names = if_nameindex(), *name;

	/* No device that nobody asked for: of a kind's fallback devices a namespace is free, too. */
	for (name = names; name && name->if_name; name++)
		say("bare-namespace", name->if_name, strcmp(name->if_name, "lo") ? EEXIST : 0);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		say("link", kinds[i].kind, add_link(kinds[i].kind, kinds[i].key, kinds[i].value));
}

static void queueing(void)
{
	static const char *const kinds[] = { "cake", "fq_codel", "fq", "htb", "hfsc", "sfq", "tbf", "netem", "clsact" };

	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		int clsact = !strcmp(kinds[i], "clsact");
		struct tcmsg info = {
			.tcm_ifindex = if_nametoindex("lo"),
			.tcm_parent = clsact ? TC_H_CLSACT : TC_H_ROOT,
			.tcm_handle = clsact ? TC_H_MAKE(TC_H_CLSACT, 0) : (i + 1) << 16,
		};
		int error;

		begin(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &info, sizeof(info));
		text(TCA_KIND, kinds[i]);
		error = request(NETLINK_ROUTE);
		/* Some want options; one that is not there is ENOENT. */
		say("qdisc", kinds[i], error == EINVAL ? 0 : error);
	}
}

/* --- netfilter --- */

static void nfnetlink(int subsystem, int type, int flags, int family)
{
	struct nfgenmsg info = { .nfgen_family = family, .version = NFNETLINK_V0 };

	begin(subsystem << 8 | type, flags, &info, sizeof(info));
}

static void sets(void)
{
	static const char *const types[] = {
		"bitmap:ip",	  "bitmap:ip,mac",    "bitmap:port",  "hash:ip",	"hash:ip,mark",	 "hash:ip,port",
		"hash:ip,port,ip", "hash:ip,port,net", "hash:ip,mac", "hash:mac",	"hash:net",	 "hash:net,net",
		"hash:net,port",  "hash:net,port,net", "hash:net,iface", "list:set",
	};

	for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
		uint8_t protocol = IPSET_PROTOCOL, family = NFPROTO_IPV4;

		nfnetlink(NFNL_SUBSYS_IPSET, IPSET_CMD_TYPE, 0, NFPROTO_IPV4);
		attribute(IPSET_ATTR_PROTOCOL, &protocol, 1);
		text(IPSET_ATTR_TYPENAME, types[i]);
		attribute(IPSET_ATTR_FAMILY, &family, 1);
		say("ipset", types[i], request(NETLINK_NETFILTER));
	}
}

static void extensions(const char *what, int family, uint32_t target, const char *names)
{
	char copy[1024], *rest = copy, *name;
	int error;

	snprintf(copy, sizeof(copy), "%s", names);
	while ((name = strsep(&rest, " "))) {
		nfnetlink(NFNL_SUBSYS_NFT_COMPAT, NFNL_MSG_COMPAT_GET, 0, family);
		text(NFTA_COMPAT_NAME, name);
		word(NFTA_COMPAT_REV, htonl(0));
		word(NFTA_COMPAT_TYPE, htonl(target));
		error = request(NETLINK_NETFILTER);
		/* There, but of no such revision. */
		say(what, name, error == EPROTONOSUPPORT ? 0 : error);
	}
}

/* A table with a flow table over lo, in one transaction. */
static void flow_table(void)
{
	char batch[4096];
	size_t length = 0;
	struct nlattr *hook, *devices;

#define ADD() (memcpy(batch + length, message, header()->nlmsg_len), length += NLMSG_ALIGN(header()->nlmsg_len))
	nfnetlink(0, NFNL_MSG_BATCH_BEGIN, 0, AF_UNSPEC);
	header()->nlmsg_flags = NLM_F_REQUEST;
	((struct nfgenmsg *)NLMSG_DATA(header()))->res_id = htons(NFNL_SUBSYS_NFTABLES);
	ADD();
	nfnetlink(NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWTABLE, NLM_F_CREATE, NFPROTO_INET);
	header()->nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE;
	text(NFTA_TABLE_NAME, "offers");
	ADD();
	nfnetlink(NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWFLOWTABLE, NLM_F_CREATE, NFPROTO_INET);
	text(NFTA_FLOWTABLE_TABLE, "offers");
	text(NFTA_FLOWTABLE_NAME, "fast");
	hook = nest(NFTA_FLOWTABLE_HOOK);
	word(NFTA_FLOWTABLE_HOOK_NUM, htonl(0));
	word(NFTA_FLOWTABLE_HOOK_PRIORITY, htonl(0));
	devices = nest(NFTA_FLOWTABLE_HOOK_DEVS);
	text(NFTA_DEVICE_NAME, "lo");
	end(devices);
	end(hook);
	ADD();
	nfnetlink(0, NFNL_MSG_BATCH_END, 0, AF_UNSPEC);
	header()->nlmsg_flags = NLM_F_REQUEST;
	((struct nfgenmsg *)NLMSG_DATA(header()))->res_id = htons(NFNL_SUBSYS_NFTABLES);
	ADD();
#undef ADD
	say("nftables", "flow-table", send_bytes(NETLINK_NETFILTER, batch, length));
}

static void ebtables(void)
{
	static const char *const tables[] = { "filter", "nat", "broute" };
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);

	for (size_t i = 0; i < sizeof(tables) / sizeof(*tables); i++) {
		struct ebt_replace info = { 0 };
		socklen_t size = sizeof(info);

		strcpy(info.name, tables[i]);
		say("ebtables", tables[i], getsockopt(fd, IPPROTO_IP, EBT_SO_GET_INFO, &info, &size) ? errno : 0);
	}
	close(fd);
}

static void ipvs(void)
{
	static const char *const schedulers[] = { "rr", "wrr", "lc", "wlc", "sh", "dh", "sed", "nq", "mh", "lblc", "fo" };
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);

	for (size_t i = 0; i < sizeof(schedulers) / sizeof(*schedulers); i++) {
		struct ip_vs_service_user service = {
			.protocol = IPPROTO_TCP,
			.addr = htonl(0x0a600001),
			.port = htons(1000 + i),
			.netmask = 0xffffffff,
		};

		strcpy(service.sched_name, schedulers[i]);
		say("ipvs", schedulers[i],
		    setsockopt(fd, IPPROTO_IP, IP_VS_SO_SET_ADD, &service, sizeof(service)) ? errno : 0);
	}
	close(fd);
}

/* --- IPsec --- */

static void xfrm_state(const char *name, int proto, int kind, const char *algorithm, int bits, int icv)
{
	struct xfrm_usersa_info info = {
		.id = { .daddr.a4 = htonl(0x7f000001), .spi = htonl(0x1000 + kind + bits + proto), .proto = proto },
		.saddr.a4 = htonl(0x7f000001),
		.lft = { XFRM_INF, XFRM_INF, XFRM_INF, XFRM_INF },
		.family = AF_INET,
		.mode = XFRM_MODE_TUNNEL,
		.reqid = 1,
	};
	char key[sizeof(struct xfrm_algo_aead) + 64] = { 0 };

	begin(XFRM_MSG_NEWSA, NLM_F_CREATE | NLM_F_EXCL, &info, sizeof(info));
	if (kind == XFRMA_ALG_AEAD) {
		struct xfrm_algo_aead *aead = (void *)key;

		strcpy(aead->alg_name, algorithm);
		aead->alg_key_len = bits;
		aead->alg_icv_len = icv;
		attribute(kind, aead, sizeof(*aead) + bits / 8);
	} else {
		struct xfrm_algo *auth = (void *)key;

		strcpy(auth->alg_name, algorithm);
		auth->alg_key_len = bits;
		attribute(kind, auth, sizeof(*auth) + bits / 8);
		if (proto == IPPROTO_ESP) {
			strcpy(auth->alg_name, "cbc(aes)");
			auth->alg_key_len = 128;
			attribute(XFRMA_ALG_CRYPT, auth, sizeof(*auth) + 16);
		}
	}
	say("ipsec", name, request(NETLINK_XFRM));
}

static void ipsec(void)
{
	xfrm_state("esp-gcm", IPPROTO_ESP, XFRMA_ALG_AEAD, "rfc4106(gcm(aes))", 160, 128);
	xfrm_state("esp-chacha20", IPPROTO_ESP, XFRMA_ALG_AEAD, "rfc7539esp(chacha20,poly1305)", 288, 128);
	xfrm_state("esp-cbc-sha256", IPPROTO_ESP, XFRMA_ALG_AUTH, "hmac(sha256)", 256, 0);
	xfrm_state("ah-sha256", IPPROTO_AH, XFRMA_ALG_AUTH, "hmac(sha256)", 256, 0);
}

/* --- sockets --- */

static void sockets(void)
{
	static const struct {
		const char *name;
		int family, type, protocol;
	} kinds[] = {
		{ "mptcp", AF_INET, SOCK_STREAM, 262 },
		{ "mptcp6", AF_INET6, SOCK_STREAM, 262 },
		{ "sctp", AF_INET, SOCK_STREAM, IPPROTO_SCTP },
		{ "sctp-seqpacket", AF_INET6, SOCK_SEQPACKET, IPPROTO_SCTP },
		{ "xdp", 44, SOCK_RAW, 0 },
	};

	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		int fd = socket(kinds[i].family, kinds[i].type, kinds[i].protocol);

		say("socket", kinds[i].name, fd < 0 ? errno : 0);
		close(fd);
	}
}

/* A word through a TCP connection that the kernel encrypts at one end and decrypts at the other. */
static int ktls(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct tls12_crypto_info_aes_gcm_128 keys = {
		.info = { .version = TLS_1_3_VERSION, .cipher_type = TLS_CIPHER_AES_GCM_128 },
		.key = "0123456789abcde",
	};
	struct timeval limit = { .tv_sec = 20 };
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0), server;
	char got[8] = { 0 };

	setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (bind(listener, (void *)&address, size) || listen(listener, 1) ||
	    getsockname(listener, (void *)&address, &size) || connect(client, (void *)&address, size))
		return errno;
	server = accept(listener, NULL, NULL);
	if (server < 0)
		return errno;
	setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (setsockopt(client, IPPROTO_TCP, TCP_ULP, "tls", 4) || setsockopt(server, IPPROTO_TCP, TCP_ULP, "tls", 4) ||
	    setsockopt(client, SOL_TLS, TLS_TX, &keys, sizeof(keys)) ||
	    setsockopt(server, SOL_TLS, TLS_RX, &keys, sizeof(keys)) || send(client, "secret", 6, 0) != 6 ||
	    recv(server, got, sizeof(got), 0) != 6)
		return errno ? errno : EPROTO;
	return strcmp(got, "secret") ? EBADMSG : 0;
}

static void crypto_sockets(void)
{
	static const char *const kinds[][2] = { { "hash", "sha256" }, { "skcipher", "xts(aes)" } };

	for (size_t i = 0; i < 2; i++) {
		struct sockaddr_alg address = { .salg_family = AF_ALG };
		int fd = socket(AF_ALG, SOCK_SEQPACKET, 0);

		strcpy((char *)address.salg_type, kinds[i][0]);
		strcpy((char *)address.salg_name, kinds[i][1]);
		say("crypto-socket", kinds[i][0], bind(fd, (void *)&address, sizeof(address)) ? errno : 0);
		close(fd);
	}
}

/* --- storage --- */

static void file_systems(void)
{
	static const char *const names[] = { "ext4", "xfs", "btrfs", "vfat", "exfat", "iso9660", "udf", "squashfs",
					     "nfs", "nfs4", "cifs", "smb3", "overlay", "fuse" };
	char list[4096] = { 0 }, with[64];
	int fd = open("/proc/filesystems", O_RDONLY);

	/* Each name between a tab and a line's end. */
	if (fd < 0 || read(fd, list, sizeof(list) - 1) < 0)
		say("filesystem", "list", errno);
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		snprintf(with, sizeof(with), "\t%s\n", names[i]);
		say("filesystem", names[i], strstr(list, with) ? 0 : ENODEV);
	}
	close(fd);
}

static int dm(int fd, unsigned long command, const char *table, uint64_t *device)
{
	char buffer[1024] = { 0 };
	struct dm_ioctl *io = (void *)buffer;

	io->version[0] = DM_VERSION_MAJOR;
	io->data_size = sizeof(buffer);
	io->data_start = sizeof(*io);
	strcpy(io->name, "offers");
	if (table) {
		struct dm_target_spec *target = (void *)(buffer + sizeof(*io));

		io->target_count = 1;
		target->length = 2048;
		strcpy(target->target_type, "crypt");
		strcpy((char *)(target + 1), table);
	}
	if (ioctl(fd, command, io))
		return errno;
	if (device)
		*device = io->dev;
	return 0;
}

/* A block written through dm-crypt is read back, and lies encrypted on the disk below. */
static int dm_crypt(void)
{
	char plain[4096], below[4096], again[4096], path[32], table[256];
	int control, number, loop, file = open("/tmp/offers.disk", O_RDWR | O_CREAT | O_TRUNC, 0600);
	uint64_t device;
	int error, disk;

	if (file < 0 || ftruncate(file, 2048 * 512))
		return errno;
	unlink("/tmp/offers.disk");
	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	number = ioctl(control, LOOP_CTL_GET_FREE);
	if (control < 0 || number < 0)
		return errno;
	snprintf(path, sizeof(path), "/dev/loop%d", number);
	loop = open(path, O_RDWR | O_CLOEXEC);
	if (loop < 0 || ioctl(loop, LOOP_SET_FD, file))
		return errno;
	/* dm opens the disk by its numbers. */
	snprintf(table, sizeof(table), "aes-xts-plain64 %064d 0 7:%d 0", 0, number);
	/* XTS wants two different keys. */
	memcpy(table + 16, "0123456789abcdef0123456789abcdef", 32);
	control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		return errno;
	error = dm(control, DM_DEV_CREATE, NULL, &device);
	if (!error)
		error = dm(control, DM_TABLE_LOAD, table, NULL);
	if (!error)
		error = dm(control, DM_DEV_SUSPEND, NULL, NULL);
	if (!error)
		error = mknod("/dev/mapper/offers", S_IFBLK | 0600, device) ? errno : 0;
	if (!error) {
		memset(plain, 'p', sizeof(plain));
		disk = open("/dev/mapper/offers", O_RDWR | O_CLOEXEC);
		if (disk < 0 || pwrite(disk, plain, sizeof(plain), 0) != sizeof(plain) || fsync(disk) ||
		    posix_fadvise(disk, 0, 0, POSIX_FADV_DONTNEED) ||
		    pread(disk, again, sizeof(again), 0) != sizeof(again) ||
		    pread(file, below, sizeof(below), 0) != sizeof(below))
			error = errno;
		else if (memcmp(plain, again, sizeof(plain)) || !memcmp(plain, below, sizeof(plain)))
			error = EBADMSG;
		close(disk);
	}
	unlink("/dev/mapper/offers");
	dm(control, DM_DEV_REMOVE, NULL, NULL);
	ioctl(loop, LOOP_CLR_FD);
	return error;
}

/* --- system calls and hardening --- */

static void system_calls(void)
{
	int mode = -1;
	int status = 1;

	say("numa", "get_mempolicy", syscall(SYS_get_mempolicy, &mode, NULL, 0UL, NULL, 0UL) ? errno : 0);
	say("numa", "move_pages", syscall(SYS_move_pages, 0, 0UL, NULL, NULL, &status, 0) ? errno : 0);
	/* Nothing in a guest reaches the agent by the guest's own address (VMADDR_CID_LOCAL). */
	struct { unsigned short family, reserved; unsigned int port, cid; unsigned char rest[4]; } local = { 40, 0, 1024, 1, { 0 } };
	int fd = socket(40, SOCK_STREAM, 0);

	say("no-loopback", "vsock", fd < 0 || connect(fd, (void *)&local, sizeof(local)) ? 0 : EISCONN);
	close(fd);
}

int main(void)
{
	struct ifreq up = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (unshare(CLONE_NEWNET)) {
		perror("unshare");
		return 1;
	}
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (ioctl(fd, SIOCSIFFLAGS, &up)) {
		perror("lo");
		return 1;
	}
	close(fd);
	links();
	queueing();
	sets();
	extensions("match", NFPROTO_IPV4, 0,
		   "addrtype bpf cgroup cluster comment connbytes connlabel connlimit connmark conntrack cpu devgroup dscp "
		   "ecn esp hashlimit helper ipcomp iprange ipvs length limit mac mark multiport nfacct osf owner physdev "
		   "pkttype policy quota rateest realm recent rpfilter sctp set socket state statistic string tcp tcpmss time "
		   "ttl u32 udp ah icmp");
	extensions("match6", NFPROTO_IPV6, 0, "frag hl rt mh eui64 ipv6header rpfilter");
	extensions("target", NFPROTO_IPV4, 1,
		   "CHECKSUM CLASSIFY CONNMARK CT DNAT DSCP HMARK IDLETIMER LOG MARK MASQUERADE NETMAP NFLOG NFQUEUE "
		   "RATEEST REDIRECT REJECT SET SNAT SYNPROXY TCPMSS TCPOPTSTRIP TEE TPROXY TRACE TTL");
	flow_table();
	ebtables();
	ipvs();
	ipsec();
	sockets();
	say("socket", "ktls", ktls());
	crypto_sockets();
	file_systems();
	say("device-mapper", "crypt", dm_crypt());
	system_calls();
	return 0;
}
