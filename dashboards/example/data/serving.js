GALLERY.put("serving",false);
