from bitgolf.record.report import report
import shutil
def test_it(finished):
    p = report(finished.run)
    shutil.copy(p, "/tmp/rep.html")
