import os, time
_fd=None
def mark(what):
    global _fd
    p=os.environ.get("LIVETRACE")
    if not p: return
    if _fd is None: _fd=os.open(p,os.O_WRONLY|os.O_APPEND|os.O_CREAT,0o600)
    os.write(_fd, f"{time.monotonic():.4f} {os.getpid()} {what} cpu={time.process_time():.3f}\n".encode())
