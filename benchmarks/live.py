"""``python -m benchmarks live``: from the loss of a worker to the next training step of all, side by side with the peers."""
from __future__ import annotations
import argparse, os, select, signal, subprocess, sys, tempfile, time
from pathlib import Path
from quorate._trace import mark
WORKER = str(Path(__file__).with_name("_live_worker.py"))
PRELOAD="quorate_live.preload"
def first(n, mode, repeats):
    folder=tempfile.mkdtemp(); pipe=folder+"/p"; os.mkfifo(pipe); r=os.open(pipe, os.O_RDWR|os.O_NONBLOCK)
    q=str(Path(sys.executable).with_name("quorate"))
    cmd=[q,"run","--standalone","--start-method=warm",f"--preload={PRELOAD}","--max-restarts=1000",f"--nproc-per-node={n}",WORKER,pipe,mode]
    p=subprocess.Popen(cmd, env={**os.environ,"OMP_NUM_THREADS":"1"}, stderr=open(folder+"/err","w"))
    buf=b""; old=set()
    def lines():
        nonlocal buf
        while True:
            select.select([r],[],[],30)
            try: buf+=os.read(r,65536)
            except BlockingIOError: raise SystemExit("nothing"+open(folder+"/err").read())
            *whole,buf=buf.split(b"\n")
            for w in whole:
                at,*rest=w.split(); yield float(at),*map(int,rest)
    def wait(after, old):
        seen={}
        for at,pid,num,size,rank in lines():
            if (pid,num) not in old and size==n and rank not in seen: seen[rank]=(at,pid,num)
            if len(seen)==n: return max(v[0] for v in seen.values()), {v[1:] for v in seen.values()}
    try:
        at,old=wait(0,old); out=[]
        for _ in range(repeats):
            t=time.monotonic()+1.0
            for l in lines():
                if time.monotonic()>t: break
            victim=max(pid for pid,_ in old); k=time.monotonic(); mark("KILL"); os.kill(victim,9)
            at,new=wait(k,old); out.append(at-k); kept=len({a for a,_ in new}&{a for a,_ in old}); old=old|new if False else new
            print(f"{n} {mode} {at-k:.3f} kept {kept}", flush=True)
        return out
    finally:
        p.send_signal(15); p.wait(); os.close(r); print(open(folder+"/err").read())
if __name__=="__main__":
    for n in map(int,sys.argv[1].split(",")):
        for mode in sys.argv[2].split(","): print(n,mode,sorted(round(x,3) for x in first(n,mode,int(sys.argv[3]))))
