"""Files in a folder or in a bucket behind one seam: import from here."""

from resources.files_seam import Files, Listed, ToldFiles, as_pattern, matching
from resources.local_files import LocalFiles
from resources.s3_files import S3Files

__all__ = ["Files", "Listed", "LocalFiles", "S3Files", "ToldFiles", "as_pattern", "matching"]
